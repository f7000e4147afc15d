"""A folder, a zip or a single file, read as one set of named files; and unpacking a zip within limits."""

import shutil
import stat
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from known_core.errors import KnownError

MAX_FILES = 1_000_000
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 200  # unpacked bytes per packed byte, checked above 100 MB
_JUNK = frozenset({"__MACOSX", ".git", ".DS_Store"})


class Source(Protocol):
    """Named files. Names are relative, with forward slashes."""

    def names(self) -> list[str]: ...
    def size(self, name: str) -> int: ...
    def open(self, name: str) -> BinaryIO: ...


@dataclass(frozen=True)
class FolderSource:
    root: Path

    def names(self) -> list[str]:
        files = []
        for path in sorted(self.root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            name = path.relative_to(self.root).as_posix()
            if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
                raise KnownError(
                    "not_regular_file",
                    f"{name} is not a regular file inside the folder",
                    "Replace links and devices by the files themselves.",
                )
            files.append(name)
        return files

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")


@dataclass(frozen=True)
class FileSource:
    """A single file, seen as a folder that holds only it, under a name of our choice."""

    path: Path
    name: str

    def names(self) -> list[str]:
        return [self.name]

    def size(self, name: str) -> int:
        return self.path.stat().st_size

    def open(self, name: str) -> BinaryIO:
        return self.path.open("rb")


class ZipSource:
    """A zip archive, its central directory checked; a single folder around everything is looked through."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise KnownError(
                "archive_invalid", f"the archive cannot be read: {error}", "Make it again with `zip -r`."
            ) from error
        entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES:
            raise KnownError("archive_limit", f"the archive holds {len(entries)} files; the limit is {MAX_FILES}", "")
        unpacked, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
        if unpacked > MAX_UNPACKED_BYTES or (unpacked > 100_000_000 and unpacked > MAX_RATIO * packed):
            raise KnownError(
                "archive_limit",
                f"the archive unpacks from {packed} to {unpacked} bytes",
                f"Limits: {MAX_UNPACKED_BYTES} bytes and {MAX_RATIO} times the packed size.",
            )
        kept = [entry for entry in entries if not _is_junk(entry.filename)]
        for entry in kept:
            _check_entry(entry)
        tops = {entry.filename.partition("/")[0] for entry in kept}
        wrapped = len(tops) == 1 and all("/" in entry.filename for entry in kept)
        prefix = f"{tops.pop()}/" if wrapped else ""
        if PurePosixPath(prefix).name in ("train", "test"):
            prefix = ""  # a split, not a wrapper
        self._entries = {entry.filename.removeprefix(prefix): entry for entry in kept}

    def names(self) -> list[str]:
        return sorted(self._entries)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._zip.open(self._entries[name]))

    def close(self) -> None:
        self._zip.close()


def _is_junk(name: str) -> bool:
    return not _JUNK.isdisjoint(name.split("/"))


def _check_entry(entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or "\0" in entry.orig_filename:
        raise KnownError(
            "archive_path_invalid", f"the archive holds the path {entry.filename[:120]!r}", "Use relative paths inside."
        )
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise KnownError(
            "not_regular_file", f"{entry.filename[:120]!r} in the archive is a link or a device", "Zip the files."
        )
    if entry.flag_bits & 1:
        raise KnownError("archive_invalid", f"{entry.filename[:120]!r} is encrypted", "Zip without a password.")


def open_source(path: Path, *, single_file_name: str) -> FolderSource | FileSource | ZipSource:
    """The files at ``path``: a folder, a zip, or a single file that is given ``single_file_name``.

    Raises:
        KnownError: ``archive_*`` for archives that are broken, too large or name paths outside themselves.
    """
    if path.is_dir():
        return FolderSource(path)
    with path.open("rb") as stream:
        magic = stream.read(512)
    if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):  # the second is an empty archive
        return ZipSource(path)
    if magic[:2] == b"\x1f\x8b" or magic[257:262] == b"ustar":
        raise KnownError("archive_format_refused", "the upload is a tar or gzip archive", "Upload a zip instead.")
    return FileSource(path, single_file_name)


def unpack(path: Path, target: Path, *, single_file_name: str) -> None:
    """Write the files at ``path`` below ``target``, counting bytes as they are unpacked.

    Raises:
        KnownError: ``archive_limit`` when a file unpacks to more than its directory entry says.
    """
    source = open_source(path, single_file_name=single_file_name)
    for name in source.names():
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        with closing(source.open(name)) as stream, destination.open("wb") as out:
            try:
                shutil.copyfileobj(stream, out, 1 << 20)
            except zipfile.BadZipFile as error:
                raise KnownError("archive_invalid", f"{name} is damaged: {error}", "Make the zip again.") from error
        if destination.stat().st_size != source.size(name):
            raise KnownError("archive_limit", f"{name} does not have the size the archive claims", "Make it again.")
