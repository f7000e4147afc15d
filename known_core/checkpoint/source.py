"""A folder, a zip or a single file, read as one set of named files; and unpacking a zip within limits."""

import io
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Protocol

import fsspec

from known_core.errors import KnownError
from known_core.files import link_or_copy

MAX_FILES = 500_000  # folders of a zip counted
MAX_DIRECTORY_BYTES = 64 << 20  # of a zip: zipfile reads all of it before it says how many entries there are
MAX_UNPACKED_BYTES = 200 << 30
MAX_RATIO = 200  # unpacked bytes per packed byte, checked above 100 MB
MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255  # what Linux file systems take
MAX_DEPTH = 64
_END = struct.Struct("<4s4H2LH")  # end of central directory (APPNOTE 4.3.16): entries at 4, bytes at 5
_END_64 = struct.Struct("<4sQ2H2L4Q")  # its zip64 form (4.3.14): entries at 7, bytes at 8
_LOCATOR_64_BYTES = 20
_JUNK = frozenset({"__MACOSX", ".git", ".DS_Store"})
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)


class Source(Protocol):
    """Named files. Names are relative, with forward slashes."""

    def names(self) -> list[str]: ...
    def size(self, name: str) -> int: ...
    def open(self, name: str) -> BinaryIO: ...


def is_local(source: Source) -> bool:
    """Whether its bytes are on this machine, so that reading all of them is a matter of seconds."""
    return isinstance(source, FolderSource | FileSource | ZipSource)


class RangeSource(Source, Protocol):
    """A source whose files can be read from anywhere in them, by several threads."""

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the file's bytes from ``begin`` on. Raises: KnownError ``source_unreadable``."""


@dataclass(frozen=True)
class FolderSource:
    """The files below a folder.

    Args:
        links: whether files may be links that lead out of the folder, as they do in the cache of huggingface_hub: only
            where the person who named the folder may read whatever it leads to.
    """

    root: Path
    links: bool = False

    def names(self) -> list[str]:
        """Sorted folder by folder, so that the files of one are next to each other."""
        found = []
        for place, folders, files in os.walk(self.root):
            linked = (name for name in folders if Path(place, name).is_symlink())
            found += [f"{place}/{name}" for name in (*files, *linked)]
        prefix = f"{self.root}/"
        for path in found:
            if not (stat.S_ISREG(os.lstat(path).st_mode) or self._may_follow(Path(path))):
                raise KnownError(
                    "not_regular_file",
                    f"{path.removeprefix(prefix)} is not a regular file inside the folder",
                    "Replace links and devices by the files themselves.",
                )
        return sorted((path.removeprefix(prefix) for path in found), key=lambda name: name.split("/"))

    def _may_follow(self, path: Path) -> bool:
        return path.is_file() and (self.links or path.resolve().is_relative_to(self.root.resolve()))

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        _read_file(self.root / name, begin, buffer)


@dataclass(frozen=True)
class Layered:
    """The files of two sources as one; a name that both have is the first one's."""

    first: Source
    second: Source | None

    def names(self) -> list[str]:
        return sorted({*self.first.names(), *(self.second.names() if self.second else [])})

    def size(self, name: str) -> int:
        return self._owner(name).size(name)

    def open(self, name: str) -> BinaryIO:
        return self._owner(name).open(name)

    def _owner(self, name: str) -> Source:
        return self.first if self.second is None or name in self.first.names() else self.second


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

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        _read_file(self.path, begin, buffer)


def _read_file(path: Path, begin: int, buffer: memoryview) -> None:
    with path.open("rb", buffering=0) as stream:
        stream.seek(begin)
        done = 0
        while done < len(buffer):
            count = stream.readinto(buffer[done:])
            if not count:
                raise _cut_short(str(path), begin + done)
            done += count


def _cut_short(where: str, position: int) -> KnownError:
    return KnownError(
        "source_unreadable",
        f"{where} ends at byte {position}, before its header says",
        "Something changed the file while it was read: leave it alone, and run it again.",
    )


class RemoteSource:
    """A file, or the files below a folder, at an fsspec URL such as ``s3://bucket/model`` or ``https://…``.

    Raises:
        KnownError: ``source_unreadable`` where the address cannot be opened, ``extra_missing`` where its protocol's
            package is not installed.
    """

    def __init__(self, url: str, *, single_file_name: str) -> None:
        self._url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
            if self._fs.isfile(root):
                self._paths = {single_file_name: root}
            else:
                below = root.rstrip("/") + "/"
                self._paths = {path.removeprefix(below): path for path in sorted(self._fs.find(root))}
        except ImportError as error:
            raise KnownError(
                "extra_missing", f"{url} needs another package: {error}", "Install what it names with pip."
            ) from error
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        for name in self._paths:
            if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name:
                raise KnownError("archive_path_invalid", f"{url} holds the name {name[:120]!r}", "Rename it there.")
        if not self._paths:
            raise KnownError("weights_missing", f"there is no checkpoint at {url}", "Check the address.")

    def names(self) -> list[str]:
        return list(self._paths)

    def size(self, name: str) -> int:
        size = self._fs.size(self._paths[name])
        if size is None:
            raise self._unreadable(f"the server does not say how large {name} is")
        return int(size)

    def open(self, name: str) -> BinaryIO:
        stream: BinaryIO = self._fs.open(self._paths[name], "rb")
        return stream

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        try:
            data = self._fs.cat_file(self._paths[name], start=begin, end=begin + len(buffer))
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) != len(buffer):
            raise _cut_short(f"{self._url} ({name})", begin + len(data))
        buffer[:] = data

    def _unreadable(self, reason: object) -> KnownError:
        return KnownError(
            "source_unreadable",
            f"{self._url} cannot be read: {str(reason)[:200] or type(reason).__name__}",
            "Check the address and your credentials; fsspec's documentation names the settings of each protocol.",
            retryable=True,
        )


class ZipSource:
    """A zip archive, its central directory checked; a single folder around everything is looked through."""

    def __init__(self, path: Path) -> None:
        _check_directory(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (*_DAMAGE, OSError) as error:
            raise KnownError(
                "archive_invalid", f"the archive cannot be read: {error}", "Make it again with `zip -r`."
            ) from error
        if len(self._zip.infolist()) > MAX_FILES:
            raise _too_many_files(len(self._zip.infolist()))
        entries = [entry for entry in self._zip.infolist() if not entry.filename.endswith("/")]
        # the directory's own packed sizes can count the same bytes many times over
        unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
        if expands_too_far(packed, unpacked):
            raise KnownError(
                "archive_limit",
                f"the archive unpacks from {packed} to {unpacked} bytes",
                f"Limits: {MAX_UNPACKED_BYTES} bytes and {MAX_RATIO} times the packed size.",
            )
        kept = {entry.filename.removeprefix("./"): entry for entry in entries if not _is_junk(entry.filename)}
        for entry in kept.values():
            _check_entry(entry, packed)
        _check_layout(kept)
        tops = {name.partition("/")[0] for name in kept}
        wrapped = len(tops) == 1 and all("/" in name for name in kept)
        prefix = f"{tops.pop()}/" if wrapped else ""
        if PurePosixPath(prefix).name in ("train", "test"):
            prefix = ""  # a split, not a wrapper
        self._entries = {name.removeprefix(prefix): entry for name, entry in kept.items()}

    def names(self) -> list[str]:
        return sorted(self._entries)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def open(self, name: str) -> BinaryIO:
        with _damage_named(name):
            return io.BufferedReader(_EntryStream(self._zip.open(self._entries[name]), name))

    def close(self) -> None:
        self._zip.close()


class _EntryStream(io.RawIOBase):
    """The bytes of a zip's entry. Damage shows only as they are read, and is then an error that names the entry."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def readinto(self, buffer: Any) -> int:
        with _damage_named(self._name):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _damage_named(self._name):
            return self._stream.seek(offset, whence)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error) or "it ends too early"
        raise KnownError(
            "archive_invalid", f"{name[:120]!r} in the archive is damaged: {reason}", "Make the zip again."
        ) from error


def _check_directory(path: Path) -> None:
    """Refuse an absurd central directory before :mod:`zipfile` makes an object of every entry.

    What this misreads, zipfile refuses; a directory that lies about its entries is still bounded by its bytes.
    """
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, (1 << 16) + _END.size), io.SEEK_END)
        tail = stream.read()
        at = len(tail) - _END.size  # as zipfile looks for it: without a comment first
        if tail[at : at + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
            at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < _END.size:
            return
        _, _, _, _, count, size, _, _ = _END.unpack_from(tail, at)
        begin = path.stat().st_size - len(tail) + at - _LOCATOR_64_BYTES - _END_64.size  # zipfile looks there alone
        if begin >= 0:
            stream.seek(begin)
            record = stream.read(_END_64.size)
            if record[:4] == b"PK\6\6" and stream.read(4) == b"PK\6\7":
                count, size = _END_64.unpack(record)[7:9]
    if count > MAX_FILES:
        raise _too_many_files(count)
    if size > MAX_DIRECTORY_BYTES:
        raise KnownError(
            "archive_limit",
            f"the archive's directory has {size} bytes; the limit is {MAX_DIRECTORY_BYTES}",
            "Give fewer files, or the data as parquet.",
        )


def _too_many_files(count: int) -> KnownError:
    return KnownError(
        "archive_limit",
        f"the archive holds {count} files; the limit is {MAX_FILES}",
        "Give fewer files, or the data as parquet.",
    )


def expands_too_far(packed: int, unpacked: int) -> bool:
    """Whether ``packed`` bytes that become ``unpacked`` bytes are a bomb."""
    return unpacked > MAX_UNPACKED_BYTES or (unpacked > 100_000_000 and unpacked > MAX_RATIO * packed)


def _is_junk(name: str) -> bool:
    return not _JUNK.isdisjoint(name.split("/"))


def _check_entry(entry: zipfile.ZipInfo, archive_bytes: int) -> None:
    name = repr(entry.filename[:120])
    parts = entry.filename.removeprefix("./").split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in entry.filename or "\0" in entry.orig_filename:
        raise KnownError("archive_path_invalid", f"the archive holds the path {name}", "Use relative paths inside.")
    longest = max(len(part.encode()) for part in parts)
    if len(parts) > MAX_DEPTH or longest > MAX_PART_BYTES or len(entry.filename.encode()) > MAX_NAME_BYTES:
        raise KnownError(
            "archive_path_invalid",
            f"the path {name} in the archive is too long or too deep",
            f"Limits: {MAX_NAME_BYTES} bytes, {MAX_PART_BYTES} in each name, {MAX_DEPTH} levels.",
        )
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise KnownError(
            "not_regular_file", f"{name} in the archive is a link or a device", "Zip the files themselves."
        )
    if entry.filename.lower().endswith(".zip"):
        raise KnownError("archive_limit", f"{name} is an archive in the archive", "Unpack it, and zip its files.")
    if entry.flag_bits & 1:
        raise KnownError("archive_invalid", f"{name} is encrypted", "Zip without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise KnownError(
            "archive_invalid", f"{name} is packed by method {entry.compress_type}", "Zip with deflate or store."
        )
    if not 0 <= entry.header_offset < archive_bytes:
        raise KnownError("archive_invalid", f"{name} lies outside of the archive", "Make it again with `zip -r`.")


def _check_layout(names: Iterable[str]) -> None:
    """Refuse a name that is a file and a folder: sorted by parts, what lies below a name comes directly after it."""
    for name, following in pairwise(sorted(name.split("/") for name in names)):
        if following[: len(name)] == name:
            raise KnownError(
                "archive_path_invalid",
                f"{'/'.join(name)[:120]!r} in the archive is a file and a folder",
                "Rename one of them.",
            )


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
        KnownError: what :func:`open_source` raises; ``archive_invalid`` for damaged bytes, ``archive_limit`` for a file
            that has not the size its directory entry claims.
    """
    source = open_source(path, single_file_name=single_file_name)
    for name in source.names():
        destination = target / name
        if isinstance(source, FolderSource):
            link_or_copy(source.root / name, destination)
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with closing(source.open(name)) as stream, destination.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
        if destination.stat().st_size != source.size(name):
            raise KnownError(
                "archive_limit", f"{name[:120]!r} does not have the size the archive claims", "Make the zip again."
            )
