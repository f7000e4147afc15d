"""Uploads: streamed to disk, counted and hashed on the way."""

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from app.keys.caller import Caller
from app.uploads.repository import UploadRepository
from app.uploads.schemas import UploadView
from known_core.errors import KnownError


class UploadService:
    """Args: max_bytes: a larger upload is refused, at the byte that passes the limit."""

    def __init__(self, repository: UploadRepository, max_bytes: int) -> None:
        self._repository = repository
        self._max_bytes = max_bytes

    def path(self, caller: Caller, upload_id: str) -> Path:
        """Where the bytes are. Raises: KnownError ``upload_not_found``."""
        return self._repository.path(caller.tenant, upload_id)

    def get(self, caller: Caller, upload_id: str) -> UploadView:
        """Raises: KnownError ``upload_not_found``."""
        return self._repository.get(caller.tenant, upload_id)

    async def receive(
        self,
        caller: Caller,
        chunks: AsyncIterator[bytes],
        filename: str,
        sha256: str | None,
        claimed_bytes: int | None,
    ) -> UploadView:
        """Take an upload.

        Args:
            chunks: the body.
            filename: the client's name for it; kept as text, never used as a path.
            sha256: what the client says it is; checked.
            claimed_bytes: Content-Length; refused early when it is too large.

        Raises:
            KnownError: ``upload_too_large``, ``upload_empty``, ``checksum_mismatch``, ``disk_full``.
        """
        if claimed_bytes is not None and claimed_bytes > self._max_bytes:
            raise self._too_large()
        upload_id = f"upl_{secrets.token_hex(12)}"
        digest, received = hashlib.sha256(), 0
        try:
            with self._repository.receive(caller.tenant, upload_id) as receiving:
                async for chunk in chunks:
                    received += len(chunk)
                    if received > self._max_bytes:
                        raise self._too_large()
                    digest.update(chunk)
                    await run_in_threadpool(receiving.write, chunk)
                if not received:
                    raise KnownError("upload_empty", "the body is empty", "Send the file as the request's body.")
                if sha256 is not None and sha256 != digest.hexdigest():
                    raise KnownError(
                        "checksum_mismatch",
                        f"the bytes received have sha256 {digest.hexdigest()}, not {sha256}",
                        "Upload again; if it happens again, compute the sha256 of the file anew.",
                        retryable=True,
                    ).at("/sha256")
                upload = UploadView(id=upload_id, filename=filename, bytes=received, sha256=digest.hexdigest())
                await run_in_threadpool(receiving.keep, upload)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise KnownError(
                "disk_full", "the server has no space for the upload", "Try again later.", retryable=True
            ) from error
        return upload

    def _too_large(self) -> KnownError:
        return KnownError(
            "upload_too_large",
            f"the upload is larger than the limit of {self._max_bytes} bytes",
            "The operator sets the limit with KNOWN_MAX_UPLOAD_BYTES.",
        )
