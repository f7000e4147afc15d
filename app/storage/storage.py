"""Files in a bucket, for machines that share no folder. Imports nothing of HTTP, so the worker uses it too.

    uploads/<tenant>/upl_.../content, upload.json     a complete upload; the record last
    jobs/store-id                                     the job store that knows the jobs
    jobs/job_.../log.txt
                 artifacts/..., manifest.json         a job's result; the manifest last
    stages/job_.../<stage>-<hash>/..., stage.json     finished stages of a job; the record last

A file is checked by its sha256 wherever it is fetched. A folder has a record, a JSON file in it that lists the others
with their sha256: it is written last, so a folder is there when its record is.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.callbacks import Callback

from known_core.errors import KnownError
from known_core.files import atomic_folder, atomic_path, sha256_file

_PART_BYTES = 8 << 20  # a file of two or more such parts goes up in parts, several at once
_MAX_PARTS = 10_000  # S3's limit
_OPTIONS = {  # both layers try again: botocore what is refused or cut off, s3fs also what breaks while it arrives
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "connect_timeout": 5,
    "read_timeout": 30,
    "signature_version": "s3v4",
}
_BREAKS = 8  # connections that may break over one file
_TRIES = 3  # of a file that arrives with another sha256
Check = Callable[[], None]  # called while bytes move; what it raises ends the transfer


def go_on() -> None:
    """The check of a transfer that nobody stops."""


@dataclass(frozen=True)
class Stored:
    """A file in the bucket. ``modified``: when it was written, seconds since the epoch."""

    key: str
    bytes: int
    modified: float


class Storage:
    """A prefix of a bucket.

    Args:
        url: ``s3://bucket/prefix``.
        endpoint: address of the S3 service; None: AWS's.
        public_endpoint: what stands for it in addresses that clients are given; None: the same.

    Credentials and region are boto's own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, or a role.

    Every method raises KnownError: ``storage_unavailable`` where the service does not answer after all tries,
    ``storage_refused`` where it does not let us in. One instance serves all threads of a process.
    """

    def __init__(self, url: str, endpoint: str | None = None, public_endpoint: str | None = None) -> None:
        self._root = url.removeprefix("s3://").rstrip("/")
        self._endpoint, self._public_endpoint = endpoint, public_endpoint or endpoint

    def put(self, source: Path, key: str, check: Check = go_on) -> None:
        """Write a file, in parts where it is large. A reader sees the old one or the new one."""
        size = source.stat().st_size
        part = max(_PART_BYTES, -(-size // _MAX_PARTS))
        with _said_clearly(key):
            self._files.put_file(str(source), self._path(key), callback=_Checking(check), chunksize=part)

    def write(self, key: str, data: bytes) -> None:
        """Write a small file."""
        with _said_clearly(key):
            self._files.pipe_file(self._path(key), data)

    def read(self, key: str) -> bytes | None:
        """A small file; None where there is none."""
        with _said_clearly(key):
            try:
                data: bytes = self._files.cat_file(self._path(key))
            except FileNotFoundError as error:
                if self._files.exists(self._root.partition("/")[0]):
                    return None
                raise _refused(error) from error
            return data

    def record(self, key: str) -> dict[str, Any] | None:
        """A small JSON file, likewise."""
        data = self.read(key)
        return None if data is None else json.loads(data)

    def file(self, key: str) -> Stored | None:
        """What is known of a file; None where there is none."""
        return next((found for found in self.files(key) if found.key == key), None)

    def files(self, key: str = "") -> list[Stored]:
        """Every file whose key is ``key`` or below it."""
        with _said_clearly(key):
            found = self._files.find(self._path(key), detail=True)
        return [
            Stored(path.removeprefix(f"{self._root}/"), facts["size"], _seconds(facts["LastModified"]))
            for path, facts in found.items()
        ]

    def children(self, key: str) -> list[str]:
        """The names of the folders right below a key."""
        with _said_clearly(key):
            try:
                found = self._files.ls(self._path(key), detail=True)
            except FileNotFoundError:
                return []
        return [PurePosixPath(facts["name"]).name for facts in found if facts["type"] == "directory"]

    def delete(self, key: str, first: str | None = None) -> None:
        """Remove a file, or all below a key; nothing there is no error.

        Args:
            first: the name of a record below it that goes before the rest: without it a folder is not there.
        """
        keys = [found.key for found in self.files(key)]
        for each in sorted(keys, key=lambda each: each != f"{key}/{first}"):
            with _said_clearly(each), suppress(FileNotFoundError):
                self._files.rm_file(self._path(each))

    def fetch(self, key: str, target: Path, sha256: str | None, check: Check = go_on) -> None:
        """Bring a file to a path of this machine: whole, durable and verified, or not at all.

        Args:
            sha256: hex; None where nobody knows it.

        Raises:
            KnownError: ``storage_missing``; ``checksum_mismatch``; OSError, such as ENOSPC.
        """
        with atomic_path(target) as temporary:
            for _ in range(_TRIES):
                with _said_clearly(key):
                    self._files.get_file(  # one after the other: only so s3fs goes on where a connection broke
                        self._path(key), str(temporary), callback=_Checking(check), max_concurrency=1
                    )
                if sha256 is None or sha256_file(temporary) == sha256:
                    return
            raise KnownError(
                "checksum_mismatch",
                f"{key} is in the bucket with another sha256 than {sha256}",
                "It was changed there: upload it again, or start the job again.",
            )

    def put_folder(self, root: Path, inner: str, key: str, record: str, check: Check = go_on) -> None:
        """Write a folder's files, its record last. A record that does not list the files gets ``files`` here.

        A process that a stranger may steer can be writing below ``root`` meanwhile: no link is followed, and what is no
        plain file is left out.

        Args:
            inner: the folder's path below ``root``.
            record: the name of the record.

        Raises:
            FileNotFoundError: where the folder or its record is gone.
        """
        files, said = [], None
        with _open_folder(root, inner) as folder:
            for path, descriptor in _plain_files(folder):
                source = Path(f"/dev/fd/{descriptor}")
                if path == record:
                    said = json.loads(source.read_bytes())
                    continue
                size = os.fstat(descriptor).st_size
                files.append({"path": path, "bytes": size, "sha256": sha256_file(source)})
                self.put(source, f"{key}/{path}", check)
                check()
        if said is None:
            raise FileNotFoundError(f"{inner}/{record}")
        text = json.dumps({"files": sorted(files, key=lambda file: str(file["path"])), **said}, indent=2)
        self.write(f"{key}/{record}", text.encode() + b"\n")

    def fetch_folder(self, key: str, target: Path, record: str, check: Check = go_on) -> None:
        """Bring a folder to a path of this machine, whole and verified; one that is there already is left alone.

        Raises:
            KnownError: as ``fetch``.
        """
        if target.is_dir():
            return
        said = self.record(f"{key}/{record}")
        if said is None:
            raise _missing(f"{key}/{record}")
        with atomic_folder(target) as temporary:
            for file in said["files"]:
                self.fetch(f"{key}/{inside(file['path'])}", temporary / file["path"], file["sha256"], check)
                check()
            (temporary / record).write_bytes(json.dumps(said, indent=2).encode() + b"\n")

    def signed_url(self, key: str, seconds: int, name: str) -> str:
        """An address that gives a file to whoever has it, by GET, for so long.

        Args:
            name: what a browser is to call the file.
        """
        shown = {"ResponseContentType": "application/octet-stream",
                 "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}  # fmt: skip
        with _said_clearly(key):
            url: str = _open(self._public_endpoint, os.getpid()).url(self._path(key), expires=seconds, **shown)
        return url

    @property
    def _files(self) -> Any:
        return _open(self._endpoint, os.getpid())

    def _path(self, key: str) -> str:
        return f"{self._root}/{inside(key)}" if key else self._root


@lru_cache
def _open(endpoint: str | None, _process: int) -> Any:
    """One client for all threads of a process. Raises: KnownError ``extra_missing``."""
    path_style = {"s3": {"addressing_style": "path"}} if endpoint else {}  # few of them have a name for every bucket
    try:
        files = fsspec.filesystem(
            "s3", endpoint_url=endpoint, config_kwargs={**_OPTIONS, **path_style}, use_listings_cache=False,
            skip_instance_cache=True,
        )  # fmt: skip
        files.retries = _BREAKS
        return files
    except ImportError as error:
        raise KnownError(
            "extra_missing", f"KNOWN_STORAGE_URL needs another package: {error}", "pip install 'known[s3]'."
        ) from error


def inside(path: str) -> str:
    """A path that stays in its folder; a manifest is written by a process that a stranger may steer.

    Raises:
        KnownError: ``archive_path_invalid``.
    """
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\\" in path or "\0" in path:
        raise KnownError("archive_path_invalid", f"{path[:120]!r} is no path below a folder", "Start the job again.")
    return path


class _Checking(Callback):  # type: ignore[misc]
    """Asks whether to go on whenever bytes have moved."""

    def __init__(self, check: Check) -> None:
        super().__init__()
        self._check = check

    def relative_update(self, inc: int = 1) -> None:
        self._check()


@contextmanager
def _said_clearly(key: str) -> Iterator[None]:
    """Errors of s3fs and what it uses, as those that users and operators can act on."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(key) from error
    except PermissionError as error:
        raise _refused(error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unavailable(error) from error
    except Exception as error:
        name = type(error).__module__.partition(".")[0]
        if name not in ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs"):
            raise
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise _refused(error) from error
        raise _unavailable(error) from error


def _missing(key: str) -> KnownError:
    return KnownError("storage_missing", f"the bucket has no {key}", "Check KNOWN_STORAGE_URL, or upload it again.")


def _refused(error: Exception) -> KnownError:
    return KnownError(
        "storage_refused", f"the bucket of KNOWN_STORAGE_URL does not let us in: {error}",
        "Check it, and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a role).",
    )  # fmt: skip


def _unavailable(error: Exception) -> KnownError:
    return KnownError(
        "storage_unavailable", f"the bucket of KNOWN_STORAGE_URL does not answer: {str(error)[:200]}",
        "Try again later.", retryable=True,
    )  # fmt: skip


@contextmanager
def _open_folder(root: Path, inner: str) -> Iterator[int]:
    """The descriptor of a folder below ``root``; no link leads there."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    at = os.open(root, flags)
    try:
        for name in PurePosixPath(inner).parts:
            below = os.open(name, flags, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _plain_files(folder: int) -> Iterator[tuple[str, int]]:
    """The path and an open descriptor of each plain file below a folder; it is closed after its turn."""
    for place, _, names, at in os.fwalk(".", follow_symlinks=False, dir_fd=folder):
        for name in names:
            if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                continue
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    yield PurePosixPath(place, name).as_posix(), descriptor
            finally:
                os.close(descriptor)


def _seconds(modified: datetime | str) -> float:
    return (datetime.fromisoformat(modified) if isinstance(modified, str) else modified).timestamp()
