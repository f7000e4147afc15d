"""A client of the service: upload, enhance, follow, download, verify."""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from known_core.errors import KnownError
from known_core.files import write_json
from known_core.manifest import verify_manifest
from known_core.transfer import Patience, Progress, download_file, upload_file

_PASSING = (408, 423, 429, 502, 503, 504)  # statuses of what may be well a moment later
_WAIT_S = 20  # one long poll


class Client:
    """Talks to one server.

    Args:
        server: its address, such as ``http://127.0.0.1:8000``.
        api_key: of a service that asks for one; None: KNOWN_API_KEY, where it is set.
        patience_s: how long a server that has answered may be away before it is given up, in seconds.

    Every method raises KnownError: with the server's own code, message and hint, or ``server_unreachable``.
    """

    def __init__(self, server: str, api_key: str | None = None, patience_s: float = 120) -> None:
        self._patience_s = patience_s
        self._server = server.rstrip("/")
        api_key = api_key or os.environ.get("KNOWN_API_KEY")
        if api_key and not re.fullmatch(r"[!-~]+", api_key):
            raise KnownError("key_invalid", "the API key has a space, or a sign that is not ASCII", "Copy it again.")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self._server, headers=headers, timeout=httpx.Timeout(60, read=150))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, path: Path, on_bytes: Progress = lambda done, total: None) -> str:
        """Send a file, or a folder as a zip; returns the upload's id. The server checks the sha256.

        What was interrupted goes on where it was, see :func:`known_core.transfer.upload_file`.
        """
        if path.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                packed = Path(folder) / f"{path.name}.zip"
                _zip_folder(path, packed)
                return self.upload(packed, on_bytes)
        if not path.is_file():
            raise KnownError("file_missing", f"there is no file {path}", "Check the path.")
        return upload_file(self._request, self._server, path, on_bytes, Patience(self._patience_s))

    def enhance(self, request: dict[str, Any], *, token: str | None = None, dry_run: bool = False) -> dict[str, Any]:
        """Start a job; returns it. The request is the API's, see docs/api.md.

        Args:
            token: of the Hub, for this job.
            dry_run: start nothing; returns what was understood of the inputs.
        """
        body = json.dumps(request)  # with NaN, which httpx would refuse: the server's answer names the field
        return self._json(
            "POST",
            "/v1/enhance",
            content=body,
            headers={"Content-Type": "application/json", **_token_header(token)},
            params={"dry_run": "true"} if dry_run else {},
        )

    def republish(self, job_id: str, request: dict[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Put a finished job's result on the Hub, again or elsewhere; returns the job."""
        return self._json("POST", f"/v1/jobs/{job_id}/republish", json=request, headers=_token_header(token))

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, limit: int = 20, after: str | None = None, status: str | None = None) -> dict[str, Any]:
        parameters = {"limit": limit, "after": after, "status": status}
        return self._json("GET", "/v1/jobs", params={k: v for k, v in parameters.items() if v is not None})

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        """Ask a job to stop and keep what is finished; returns it, ``pausing`` until its worker has let it go."""
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        """Go on with a paused job."""
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def capabilities(self) -> dict[str, Any]:
        """What the service can do, and with which workers."""
        return self._json("GET", "/v1/capabilities")

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its files."""
        self._request("DELETE", f"/v1/jobs/{job_id}")

    def deliveries(self, job_id: str | None = None, status: str | None = None, limit: int = 20) -> dict[str, Any]:
        """Webhook deliveries, newest first, with every attempt; of one job, or in one state."""
        parameters = {"job": job_id, "status": status, "limit": limit}
        return self._json(
            "GET", "/v1/webhooks/deliveries", params={k: v for k, v in parameters.items() if v is not None}
        )

    def redeliver(self, delivery_id: str) -> dict[str, Any]:
        """Deliver a webhook again; returns the delivery."""
        return self._json("POST", f"/v1/webhooks/deliveries/{delivery_id}/redeliver")

    def webhook_secret(self, *, rotate: bool = False) -> dict[str, Any]:
        """What webhooks are signed with, made on first use; or a new one in its place."""
        return self._json("POST", "/v1/webhooks/secret/rotate") if rotate else self._json("GET", "/v1/webhooks/secret")

    def logs(self, job_id: str, tail: int = 1000) -> str:
        return self._request("GET", f"/v1/jobs/{job_id}/logs", params={"tail": tail}).text

    def report(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job_id}/report")

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job's events from its first on, as they happen, until it has ended. Stopping stops nothing else.

        A server that goes away for a while (a deploy) ends nothing: what was missed follows.
        """
        after, patience = "0", Patience(self._patience_s)
        while True:
            try:
                page = self._json("GET", f"/v1/jobs/{job_id}/events", params={"after": after, "wait": _WAIT_S})
            except KnownError as error:
                patience.bear(error)
                continue
            patience.renew()
            for event in page["data"]:
                yield event["data"]
            after = page["last_id"] or after
            if page["ended"]:
                return

    def download(
        self, job_id: str, out: Path, only: str | None = None, on_bytes: Progress = lambda done, total: None
    ) -> int:
        """Fetch a job's files into a folder and verify every sha256. What was interrupted goes on where it was.

        Args:
            only: one candidate's folder (the report and the manifest come along), or None for everything.

        Returns:
            The number of files verified.
        """
        manifest = self._json("GET", f"/v1/jobs/{job_id}/manifest")
        wanted = [
            entry
            for entry in manifest["files"]
            if only is None or "/" not in entry["path"] or entry["path"].startswith(f"{only}/")
        ]
        total, before = sum(entry["bytes"] for entry in wanted), 0
        for entry in wanted:

            def on_file_bytes(done: int, before: int = before) -> None:
                on_bytes(before + done, total)

            download_file(
                self._stream,
                f"/v1/jobs/{job_id}/artifacts/{quote(entry['path'])}",
                out / entry["path"],
                entry["bytes"],
                entry["sha256"],
                on_file_bytes,
                Patience(self._patience_s),
            )
            before += entry["bytes"]
        write_json(out / "manifest.json", manifest)
        return verify_manifest(out, partial=only is not None)

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._request(method, path, **options).json()
        return answer

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _problem(answer)
        return answer

    @contextmanager
    def _stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if answer.is_error:
                    answer.read()
                    raise _problem(answer)
                yield answer
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> KnownError:
        return KnownError(
            "server_unreachable",
            f"no answer from {self._server}: {error}",
            "Start one with `known serve`, or name another with --server.",
            retryable=True,
        )


def _token_header(token: str | None) -> dict[str, str]:
    return {"X-Hub-Token": token} if token else {}


def _problem(answer: httpx.Response) -> KnownError:
    try:
        problem = answer.json()
        passes = answer.status_code in _PASSING or problem["code"] == "offset_mismatch"  # of an upload cut off just now
        return KnownError(problem["code"], problem["detail"], problem["hint"], retryable=passes)
    except (ValueError, KeyError):
        passes = answer.status_code in _PASSING
        said = f"the server answered {answer.status_code}"
        return KnownError("server_error", said, answer.text[:200], retryable=passes)


def _zip_folder(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
