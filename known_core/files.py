"""Files that are whole or absent: atomic writes, atomic folders, checksums."""

import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from known_core.errors import KnownError

_UNFINISHED = ".tmp"  # how the name of a file ends that is being written


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in 1 MiB pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tree(path: Path) -> str:
    """Hex sha256 of a file; of a folder, over the names and hashes of all files below it."""
    if path.is_file():
        return sha256_file(path)
    files = {file.relative_to(path).as_posix(): sha256_file(file) for file in path.rglob("*") if file.is_file()}
    return sha256_bytes(canonical_json(files))


def fsync_directory(path: Path) -> None:
    """Make the names in a folder durable (a rename alone is not)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A sibling temporary path that becomes ``path`` when the block ends well, and nothing when it fails.

    The file is synced before and its folder after the rename, so a crash leaves either the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented for people."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A sibling temporary folder that becomes ``path`` when the block ends well, and nothing when it fails.

    Several may make the same folder side by side, as where a job was taken from a process that has not noticed yet:
    each has a temporary folder of its own, the first to be done gives it the name, the others are content with that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{socket.gethostname()}-"
    for other in path.parent.glob(f"{glob.escape(prefix)}*{_UNFINISHED}"):
        if not _runs(int(other.name[len(prefix) :].partition("-")[0])):
            shutil.rmtree(other, ignore_errors=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}{_UNFINISHED}")
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except Exception:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"):
        shutil.rmtree(other, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def resumable_folder(path: Path, key: str) -> Iterator[Path]:
    """Like :func:`atomic_folder`, but a run finds what the last one with the same key left.

    For work of several files that are each written atomically: one that is there is finished. The temporary folder is
    kept when the process is killed or interrupted, and when the error says that it may pass; it is removed after every
    other error, and when a run with another key begins.

    Args:
        key: stands for everything the files depend on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{key}.partial")
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if other != temporary and "." not in other.name[len(path.name) + 2 : -len(".partial")]:
            shutil.rmtree(other, ignore_errors=True)
    temporary.mkdir(exist_ok=True)
    _remove_unfinished(temporary)
    try:
        yield temporary
        _remove_unfinished(temporary)  # of who helped and comes too late
        temporary.replace(path)
        fsync_directory(path.parent)
    except KnownError as error:
        if not error.retryable:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_unfinished(folder: Path) -> None:
    for unfinished in folder.rglob(f".*{_UNFINISHED}"):
        unfinished.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name; a hard link where the file system has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def folder_bytes(folder: Path) -> int:
    """What the files below a folder take; one with several names counts once."""
    found = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(file.st_dev, file.st_ino): file.st_size for file in found}.values())
