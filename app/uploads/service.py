"""Uploads: whole in one request, or resumable; streamed to disk, counted and hashed on the way."""

import errno
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from app.keys.caller import Caller
from app.uploads.body import pour
from app.uploads.content import Content
from app.uploads.record import Upload
from app.uploads.repository import UploadRepository
from app.uploads.tus import Checksum
from known_core.errors import KnownError


class UploadService:
    """Args: max_bytes: a larger upload is refused. idle_s: seconds without a byte after which a request is given up.
    in_use: the ids that a tenant's jobs
    still need."""

    def __init__(
        self, repository: UploadRepository, max_bytes: int, idle_s: float, in_use: Callable[[str], Collection[str]]
    ) -> None:
        self._repository = repository
        self._idle_s = idle_s
        self._in_use = in_use
        self.max_bytes = max_bytes

    def path(self, caller: Caller, upload_id: str) -> Path:
        """Where the bytes are. Raises: KnownError ``upload_not_found``, ``upload_incomplete``."""
        self.get(caller, upload_id)
        return self._repository.path(caller.tenant, upload_id)

    def get(self, caller: Caller, upload_id: str) -> Upload:
        """An upload. One whose last byte came just before the process died is completed now.

        Raises:
            KnownError: ``upload_not_found``, ``upload_expired``; ``checksum_mismatch`` from completing it.
        """
        upload = self._repository.get(caller.tenant, upload_id)
        if upload.complete or upload.offset != upload.length:
            return upload
        try:
            content = self._repository.open(caller.tenant, upload_id)
        except KnownError as error:
            if error.code not in ("upload_locked", "upload_complete"):
                raise
            return self._repository.get(caller.tenant, upload_id)  # whoever holds it completes it
        with _closing(content):
            if content.offset != upload.length:  # bytes that a killed writer had not verified are gone
                return self._repository.get(caller.tenant, upload_id)
            return self._repository.complete(caller.tenant, content, None)

    def create(
        self, caller: Caller, filename: str, length: int | None, sha256: str | None = None, metadata: str = ""
    ) -> Upload:
        """Make room for an upload.

        Raises:
            KnownError: ``upload_too_large``, ``upload_empty``, ``storage_quota_exceeded``, ``disk_full``.
        """
        if length == 0:
            raise KnownError("upload_empty", "the upload has no bytes", "Send the file as the request's body.")
        if length is not None and length > self.max_bytes:
            raise self._too_large()
        with _disk_full():
            return self._repository.create(
                caller.tenant, filename=filename, length=length, sha256=sha256, metadata=metadata
            )

    async def append(
        self,
        caller: Caller,
        upload_id: str,
        offset: int,
        chunks: AsyncIterator[bytes],
        claimed_bytes: int | None,
        checksum: Checksum | None = None,
    ) -> Upload:
        """Take the next bytes of an upload. What arrived before a failure stays, unless it has a checksum.

        Args:
            offset: where the client thinks the upload is.
            claimed_bytes: Content-Length; refused at once when it is too much.
            checksum: of these bytes.

        Raises:
            KnownError: ``upload_not_found``, ``upload_expired``, ``upload_locked``, ``upload_complete``,
                ``offset_mismatch``, ``upload_overrun``, ``chunk_checksum_mismatch``, ``checksum_mismatch``,
                ``storage_quota_exceeded``, ``disk_full``, ``upload_stalled``, ``upload_interrupted``.
        """
        upload = await run_in_threadpool(self.get, caller, upload_id)
        if upload.complete:
            _check_offset(offset, upload.offset)
            if claimed_bytes == 0:
                return upload
            raise _overrun(upload, upload.offset + (claimed_bytes or 1))
        content = await run_in_threadpool(self._repository.open, caller.tenant, upload_id)
        with _closing(content):
            _check_offset(offset, content.offset)
            if claimed_bytes is not None and upload.length is not None and offset + claimed_bytes > upload.length:
                raise _overrun(upload, offset + claimed_bytes)
            if checksum:
                await run_in_threadpool(content.distrust)
            try:
                sha256 = await self._pour(caller, content, upload, chunks, checksum)
                await run_in_threadpool(content.sync)
                content.trust()
            except BaseException:
                content.rollback()
                raise
            if content.offset == upload.length:
                return await run_in_threadpool(self._repository.complete, caller.tenant, content, sha256)
        return await run_in_threadpool(self._repository.get, caller.tenant, upload_id)

    async def receive(
        self,
        caller: Caller,
        chunks: AsyncIterator[bytes],
        filename: str,
        sha256: str | None,
        claimed_bytes: int | None,
    ) -> Upload:
        """Take a whole upload; what fails leaves nothing.

        Args:
            chunks: the body.
            filename: the client's name for it; kept as text, never used as a path.
            sha256: what the client says it is; checked.
            claimed_bytes: Content-Length; refused early when it is too large.

        Raises:
            KnownError: as ``create`` and ``append``.
        """
        upload = await run_in_threadpool(self.create, caller, filename, claimed_bytes, sha256)
        content = await run_in_threadpool(self._repository.open, caller.tenant, upload.id)
        try:
            digest = await self._pour(caller, content, upload, chunks, None)
            if not content.offset:
                raise KnownError("upload_empty", "the body is empty", "Send the file as the request's body.")
            return await run_in_threadpool(self._repository.complete, caller.tenant, content, digest)
        except BaseException:
            self._repository.discard(content)
            raise
        finally:
            content.close()

    def remove(self, caller: Caller, upload_id: str) -> None:
        """Raises: KnownError ``upload_not_found``, ``upload_locked``, ``upload_in_use``."""
        if upload_id in self._in_use(caller.tenant):
            raise KnownError(
                "upload_in_use", f"a job that has not ended uses the upload {upload_id}", "Wait for it, or cancel it."
            )
        self._repository.remove(caller.tenant, upload_id)

    async def _pour(
        self,
        caller: Caller,
        content: Content,
        upload: Upload,
        chunks: AsyncIterator[bytes],
        checksum: Checksum | None,
    ) -> str | None:
        """Append a body to the content; the sha256 of the whole, where this was the whole."""
        end = self.max_bytes if upload.length is None else upload.length
        whole = hashlib.sha256() if content.offset == 0 else None

        def write(data: memoryview) -> None:
            if content.offset + len(data) > end:
                raise self._too_large() if upload.length is None else _overrun(upload, content.offset + len(data))
            if whole:
                whole.update(data)
            if checksum:
                checksum.update(data)
            with _disk_full():
                self._repository.append(caller.tenant, content, data, reserved=upload.length is not None)

        await pour(chunks, write, self._idle_s)
        if checksum:
            checksum.check()
        return whole.hexdigest() if whole else None

    def _too_large(self) -> KnownError:
        return KnownError(
            "upload_too_large",
            f"the upload is larger than the limit of {self.max_bytes} bytes",
            "The operator sets the limit with KNOWN_MAX_UPLOAD_BYTES.",
        )


@contextmanager
def _closing(content: Content) -> Iterator[None]:
    try:
        yield
    finally:
        content.close()


@contextmanager
def _disk_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KnownError(
            "disk_full", "the server has no space for the upload", "Try again later.", retryable=True
        ) from error


def _check_offset(claimed: int, true: int) -> None:
    if claimed != true:
        raise KnownError(
            "offset_mismatch",
            f"Upload-Offset is {claimed}; the upload is at {true}",
            "Ask for the offset (HEAD), and go on there.",
        )


def _overrun(upload: Upload, end: int) -> KnownError:
    return KnownError(
        "upload_overrun",
        f"the body would end at byte {end} of an upload of {upload.length} bytes",
        "Send no more than Upload-Length said.",
    )
