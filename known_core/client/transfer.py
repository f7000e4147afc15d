"""Files to and from a server, so that what breaks is resumed: tus 1.0.0 up, Range and If-Range down."""

import base64
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from known_core.client import errors
from known_core.client.steps import Receive, Send, Sleep, Steps, Work
from known_core.errors import KnownError
from known_core.files import atomic_path, fsync_directory, sha256_bytes, sha256_file

_CHUNK = 1 << 20  # bytes
_TUS = {"Tus-Resumable": "1.0.0"}
_PAUSE_S = 0.5  # between two tries
Progress = Callable[[int, int], None]  # bytes done, bytes in all


def unseen(done: int, total: int) -> None:
    """Progress that nobody watches."""


class Patience:
    """How long failures that may pass are borne without progress, once there was some. Args: limit_s: seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._until = 0.0

    def renew(self) -> None:
        """There was progress."""
        self._until = time.monotonic() + self._limit_s

    def bear(self, error: KnownError) -> Steps[None]:
        """Wait a little. Raises: the error, where it does not pass or lasts too long."""
        if not error.retryable or time.monotonic() > self._until:
            raise error
        yield Sleep(_PAUSE_S)


def upload_path(server: str, path: Path, on_bytes: Progress, patience: Patience) -> Steps[str]:
    """Send a file, or a folder as a zip; returns the upload's id. See :func:`upload_file`."""
    if path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / f"{path.name}.zip"
            yield Work(lambda: _zip_folder(path, packed))
            return (yield from upload_file(server, packed, on_bytes, patience))
    if not path.is_file():
        raise errors.problem(
            "file_missing", f"there is no file or folder {path}", "Check the path; on the Hub it is hub:user/name."
        )
    return (yield from upload_file(server, path, on_bytes, patience))


def upload_file(server: str, path: Path, on_bytes: Progress, patience: Patience) -> Steps[str]:
    """Send a file; returns the upload's id.

    A connection that breaks, or a server that restarts, is waited for, and the upload goes on at the server's offset.
    So does the next call with the same file after this one was interrupted: where it was is in a small file in the
    user's cache folder, by server, name and content.

    Raises:
        KnownError: the server's; ``server_unreachable``; ``checksum_mismatch``, where the file changed meanwhile.
    """
    total, sha256 = path.stat().st_size, (yield Work(lambda: sha256_file(path)))
    memory = _memory(server, path.name, sha256)
    place = memory.read_text(encoding="utf-8") if memory.is_file() else None
    while True:
        try:
            upload = (yield from _look(place)) if place else None
            if place is None or upload is None:
                place = yield from _create(path.name, total, sha256)
                upload = {"status": "incomplete", "received": 0}
                _remember(memory, place)
            patience.renew()
            on_bytes(upload["received"], total)
            if upload["status"] != "complete":
                yield _append(place, path, upload["received"], total, on_bytes, patience)
            memory.unlink(missing_ok=True)
            return place.rpartition("/")[2]
        except KnownError as error:
            if error.code == "checksum_mismatch":
                memory.unlink(missing_ok=True)
            yield from patience.bear(error)


def _create(name: str, total: int, sha256: str) -> Steps[str]:
    metadata = {"filename": name[:255], "sha256": sha256}
    encoded = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())
    headers = {**_TUS, "Upload-Length": str(total), "Upload-Metadata": encoded}
    answer = yield Send("POST", "/v1/uploads", headers=headers)
    place: str = answer.headers["Location"]
    return place


def _look(place: str) -> Steps[dict[str, Any] | None]:
    """What the server has of the upload; None where it no longer has any."""
    try:
        upload: dict[str, Any] = (yield Send("GET", place)).json()
    except errors.NotFound:
        return None
    return upload


def _append(place: str, path: Path, offset: int, total: int, on_bytes: Progress, patience: Patience) -> Send:
    def body() -> Iterator[bytes]:
        done = offset
        with path.open("rb") as stream:
            stream.seek(offset)
            while chunk := stream.read(min(_CHUNK, total - done)):
                yield chunk
                done += len(chunk)
                patience.renew()
                on_bytes(done, total)

    headers = {
        **_TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(total - offset),
    }
    return Send("PATCH", place, headers=headers, content=body())


def _memory(server: str, name: str, sha256: str) -> Path:
    """The file that remembers where an upload is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "known" / "uploads" / sha256_bytes(f"{server}\n{name}\n{sha256}".encode())


def _remember(memory: Path, place: str) -> None:
    with atomic_path(memory) as temporary:
        temporary.write_text(place, encoding="utf-8")


def _zip_folder(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


def download_file(
    url: str, target: Path, size: int, sha256: str, on_bytes: Callable[[int], None], patience: Patience
) -> Steps[None]:
    """Fetch a file; what an interrupted download left of it is taken up.

    Args:
        size: bytes of the whole file.
        on_bytes: told how many bytes of the file are here.

    Raises:
        KnownError: the server's; ``server_unreachable``; ``checksum_mismatch``, where nothing is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{sha256[:16]}.partial")
    with partial.open("ab") as file:

        def begin(first_byte: int) -> None:
            file.truncate(first_byte)

        def take(piece: bytes) -> None:
            file.write(piece)
            patience.renew()
            on_bytes(file.tell())

        while (at := file.tell()) < size:
            headers = {"Range": f"bytes={at}-", "If-Range": f'"{sha256}"'} if at else {}
            try:
                yield Receive(url, headers, begin, take)
            except KnownError as error:
                yield from patience.bear(error)
        file.flush()
        yield Work(lambda: os.fsync(file.fileno()))
    if (yield Work(lambda: sha256_file(partial))) != sha256:
        partial.unlink()
        raise errors.problem("checksum_mismatch", f"{target.name} arrived with another sha256", "Download again.")
    partial.replace(target)
    fsync_directory(target.parent)
