"""The files a job made: listed in its manifest, served from its folder, or from the bucket."""

import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.artifacts.schemas import ArtifactList, ArtifactView, FigureList, FigureView
from app.artifacts.signing import UrlSigner
from app.jobs.repository import JobRepository
from app.jobs.settings import StoreSettings
from app.storage.storage import inside
from known_core.errors import KnownError
from known_core.files import sha256_bytes

MANIFEST = "manifest.json"
_COPY_S = 24 * 3600


def artifact_path(job_id: str, path: str) -> str:
    """Where the API serves a file of a job; not quoted."""
    return f"/v1/jobs/{job_id}/artifacts/{path}"


def figure_path(job_id: str, name: str) -> str:
    """Where the API serves a figure of a job's report; not quoted."""
    return f"/v1/jobs/{job_id}/figures/{name}.svg"


class ArtifactService:
    """Serves only what the manifest names, so no path leads anywhere else."""

    def __init__(self, repository: JobRepository, settings: StoreSettings, signer: UrlSigner) -> None:
        self._repository = repository
        self._settings = settings
        self._signer = signer
        self._storage = settings.storage()

    def list(self, tenant: str, job_id: str) -> ArtifactList:
        """Every file, with an address for the tenant and one for whoever it is given to."""
        data = []
        for entry in self.manifest(job_id)["files"]:
            addresses = self._addresses(tenant, artifact_path(job_id, entry["path"]))
            data.append(ArtifactView(**entry, **addresses))
        return ArtifactList(data=data)

    def figures(self, tenant: str, job_id: str) -> FigureList:
        """Every figure of the report, likewise. Raises: as ``report``."""
        data = []
        for entry in self.report(job_id).get("figures", []):
            addresses = self._addresses(tenant, figure_path(job_id, entry["name"]))
            data.append(FigureView(**entry, **addresses))
        return FigureList(data=data)

    def figure(self, job_id: str, name: str) -> tuple[str, str]:
        """A figure as SVG, and its sha256.

        Raises:
            JobNotFound; KnownError ``result_not_ready``, ``result_damaged``, ``figure_not_found``.
        """
        return _figure(*self._report_file(job_id), name)

    def _addresses(self, tenant: str, path: str) -> dict[str, str]:
        download_url, expires = self._signer.sign(tenant, path)
        expires_at = datetime.fromtimestamp(expires, UTC).isoformat().replace("+00:00", "Z")
        return {"url": quote(path), "download_url": download_url, "expires_at": expires_at}

    def manifest(self, job_id: str) -> dict[str, Any]:
        """Raises: JobNotFound; KnownError ``result_not_ready``, ``result_damaged``."""
        return _read(self._local(job_id, MANIFEST))

    def report(self, job_id: str) -> dict[str, Any]:
        """Raises: JobNotFound; KnownError ``result_not_ready``, ``result_damaged``."""
        return _read(*self._report_file(job_id))

    def _report_file(self, job_id: str) -> tuple[Path, str]:
        """Where it is on this machine, and the sha256 that it was written with."""
        return self._local(job_id, "report.json"), self._entry(job_id, "report.json")["sha256"]

    def file(self, job_id: str, path: str) -> tuple[Path, str | None]:
        """Where a file lies on this machine, and its sha256 (None for the manifest itself). For small files.

        Raises:
            JobNotFound; KnownError ``result_not_ready``, ``artifact_not_found``.
        """
        sha256 = None if path == MANIFEST else self._entry(job_id, path)["sha256"]
        return self._local(job_id, path), sha256

    def stored(self, job_id: str, path: str) -> "StoredFile | None":
        """A file in the bucket, with an address that gives it to whoever has it; None where there is no bucket, and for
        the manifest, which the API gives itself.

        Raises:
            as ``file``.
        """
        if self._storage is None or path == MANIFEST:
            return None
        entry = self._entry(job_id, path)
        url = self._storage.signed_url(_key(job_id, path), self._signer.lasts_s, Path(path).name)
        return StoredFile(url, entry["bytes"], entry["sha256"])

    def _entry(self, job_id: str, path: str) -> dict[str, Any]:
        """What the manifest says of a file."""
        for entry in self.manifest(job_id)["files"]:
            if entry["path"] == path:
                inside(path)  # the manifest is of a process that a stranger may steer
                return dict(entry)
        raise KnownError(
            "artifact_not_found", f"the job has no file {path[:200]!r}", "GET /v1/jobs/{id}/artifacts lists them."
        )

    def logs(self, job_id: str, lines: int) -> str:
        """The last lines of the job's log; empty before it has started. Raises: JobNotFound."""
        self._repository.status(job_id)
        path = self._settings.job_folder(job_id) / "log.txt"
        kept = self._storage.read(f"jobs/{job_id}/log.txt") if self._storage is not None else None
        if kept is not None:
            return "".join(kept.decode(errors="replace").splitlines(keepends=True)[-lines:])
        if not path.is_file():
            return ""
        with path.open(encoding="utf-8", errors="replace") as stream:
            return "".join(deque(stream, maxlen=lines))

    def sweep(self) -> int:
        """Remove copies of what is in the bucket that are a day old; returns how many."""
        old = [path for path in self._copies.glob("*/*") if path.stat().st_mtime < time.time() - _COPY_S]
        for path in old:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                path.parent.rmdir()
        return len(old)

    @property
    def _copies(self) -> Path:
        return self._settings.data / "copies"

    def _local(self, job_id: str, path: str) -> Path:
        """Where a file of a job is on this machine."""
        folder = self._folder(job_id)
        if self._storage is None:
            return folder / path
        copy = self._copies / job_id / path.replace("/", "-")
        if not copy.is_file():
            self._storage.fetch(
                _key(job_id, path), copy, None if path == MANIFEST else self._entry(job_id, path)["sha256"]
            )
        return copy

    def _folder(self, job_id: str) -> Path:
        status = self._repository.status(job_id)
        if status != "succeeded":
            raise KnownError(
                "result_not_ready", f"the job is {status.value}", "GET /v1/jobs/{id}?wait=60 answers when it has ended."
            )
        return self._settings.run_folder(job_id) / "artifacts"


@dataclass(frozen=True)
class StoredFile:
    """A file in the bucket. Args: url: signed."""

    url: str
    bytes: int
    sha256: str


def _key(job_id: str, path: str) -> str:
    return f"jobs/{job_id}/artifacts/{path}"


def _read(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """A JSON file that a job wrote. Args: sha256: by its manifest. Raises: KnownError ``result_damaged``."""
    try:
        content = path.read_bytes()
        if sha256 not in (None, sha256_bytes(content)):
            raise ValueError("its sha256 is not that of manifest.json")
        found: dict[str, Any] = json.loads(content)
    except (OSError, ValueError) as error:
        raise KnownError(
            "result_damaged",
            f"{path.name} of this job is not what the job wrote: {type(error).__name__}",
            "Bring the job's folder back from a backup, or run the job again.",
        ) from error
    return found


@lru_cache(maxsize=64)  # of about 30 kB; a job's report never changes
def _figure(report: Path, sha256: str, name: str) -> tuple[str, str]:
    from known_core.figures import render_svg  # here: matplotlib takes a second to load, and most requests need none

    svg = render_svg(_read(report, sha256), name)
    return svg, sha256_bytes(svg.encode())
