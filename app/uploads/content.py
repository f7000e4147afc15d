"""The bytes of an upload while they arrive: one writer at a time, and an offset that is always true."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from known_core.errors import KnownError
from known_core.files import fsync_directory

CONTENT = "content"
_UNVERIFIED = "unverified"  # a link that says from which offset on a checksum has still to be verified


class Content:
    """The file of an incomplete upload, opened and locked for one writer.

    The offset is the size of the file: there is no second record of it that a crash could make differ. The lock is the
    kernel's, so it goes with the process that held it.

    Raises:
        KnownError: ``upload_locked``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = os.open(folder / CONTENT, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise KnownError(
                "upload_locked",
                f"another request is writing to the upload {folder.name}",
                "Wait for it to end, ask for the offset (HEAD), and go on there.",
                retryable=True,
            ) from error
        self.rollback()  # of a writer that was killed

    def close(self) -> None:
        os.close(self._fd)

    @property
    def offset(self) -> int:
        return os.fstat(self._fd).st_size

    def append(self, data: memoryview) -> None:
        """Write at the end. Raises: OSError, such as ENOSPC; what was written counts in the offset."""
        while data:
            data = data[os.write(self._fd, data) :]

    def distrust(self) -> None:
        """What is written from here on does not count until it is trusted."""
        (self.folder / _UNVERIFIED).symlink_to(str(self.offset))  # a link is there with its text, or not at all
        fsync_directory(self.folder)

    def trust(self) -> None:
        (self.folder / _UNVERIFIED).unlink(missing_ok=True)

    def rollback(self) -> None:
        """Remove what is not trusted."""
        trusted = offset_of(self.folder)
        if trusted != self.offset:  # truncating would count as a byte that came, and put off the expiry
            os.ftruncate(self._fd, trusted)
        self.trust()

    def sync(self) -> None:
        """Make the bytes durable."""
        os.fsync(self._fd)

    def read_into(self, update: Callable[[bytes], object]) -> None:
        """Give the whole content to, for example, a digest, in pieces of 1 MiB."""
        position = 0
        while piece := os.pread(self._fd, 1 << 20, position):
            update(piece)
            position += len(piece)


def offset_of(folder: Path) -> int:
    """Bytes of an upload that are here and count, also while another writes. Raises: FileNotFoundError."""
    size = (folder / CONTENT).stat().st_size
    try:
        return min(size, int((folder / _UNVERIFIED).readlink().name))
    except FileNotFoundError:
        return size
