"""Uploads on disk, a folder each. Imports nothing of HTTP, so that a worker may use it.

<root>/<tenant>/upl_.../content          the bytes
                        incoming.json    while it is not complete: what its client says it will be
                        upload.json      once it is complete: name, bytes, sha256

With a bucket, content and upload.json are there, and what is here of a complete upload is a copy. While an upload is
not complete it is on the machine that takes it, alone.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.storage.storage import Check, Storage, go_on
from app.uploads.content import CONTENT, Content, offset_of
from app.uploads.record import STEPS, Upload, new_upload_id
from known_core.errors import KnownError
from known_core.files import canonical_json, fsync_directory, read_json, write_json
from known_core.schema import SCHEMA, forward, newest

_INCOMING, _COMPLETE = "incoming.json", "upload.json"
_COPY_S = 24 * 3600  # a copy of what is in the bucket goes so long after its last use


@dataclass(frozen=True)
class Limits:
    """What uploads may take. Bytes and seconds.

    Args:
        tenant_bytes: of all of a tenant's uploads, with what the incomplete ones will need; 0: any number.
        free_bytes: what has to stay free on the disk.
        expiry_s: an incomplete upload that gets no byte for this long is removed.
    """

    tenant_bytes: int = 0
    free_bytes: int = 0
    expiry_s: float = 24 * 3600


class UploadRepository:
    """Args: root: the folder that holds the uploads, a folder for each tenant. storage: where complete ones are kept;
    None: there."""

    def __init__(self, root: Path, limits: Limits | None = None, storage: Storage | None = None) -> None:
        self._root = root
        self._limits = limits or Limits()
        self._storage = storage

    def create(
        self, tenant: str, *, filename: str, length: int | None, sha256: str | None = None, metadata: str = ""
    ) -> Upload:
        """Make room for an upload; durable. Raises: KnownError ``storage_quota_exceeded``, ``disk_full``."""
        upload_id = new_upload_id()
        folder = self._folder(tenant, upload_id)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._room_for(tenant, length or 0):
            folder.mkdir()
            (folder / CONTENT).touch()
            said = {"filename": filename, "bytes": length, "sha256": sha256, "metadata": metadata}
            write_json(folder / _INCOMING, {SCHEMA: newest(STEPS), **said})
        fsync_directory(folder.parent)
        return self.get(tenant, upload_id)

    def get(self, tenant: str, upload_id: str) -> Upload:
        """Raises: KnownError ``upload_not_found``, also where it is another tenant's; ``upload_expired``."""
        upload = self._find(tenant, upload_id)
        if upload.expires_at is not None and upload.expires_at < time.time():
            raise KnownError(
                "upload_expired",
                f"no byte of the upload {upload_id} came for {self._limits.expiry_s:g} seconds",
                "Start a new one: POST /v1/uploads.",
            )
        return upload

    def _find(self, tenant: str, upload_id: str) -> Upload:
        folder = self._folder(tenant, upload_id)
        if self._storage is None:
            with suppress(FileNotFoundError):
                return _complete(upload_id, read_json(folder / _COMPLETE))
        elif not (folder / _INCOMING).is_file():  # a copy here tells nothing: another machine may have removed it
            record = self._storage.record(f"{_key(tenant, upload_id)}/{_COMPLETE}")
            if record is None:
                raise _not_found(upload_id)
            return _complete(upload_id, record)
        try:
            said = forward(read_json(folder / _INCOMING), STEPS, f"upload {upload_id}")
            expires_at = (folder / CONTENT).stat().st_mtime + self._limits.expiry_s
            return Upload(upload_id, said["filename"], said["bytes"], said["sha256"], said["metadata"],
                          offset=offset_of(folder), expires_at=expires_at)  # fmt: skip
        except FileNotFoundError as error:
            raise _not_found(upload_id) from error

    def path(self, tenant: str, upload_id: str, check: Check = go_on) -> Path:
        """Where the bytes of a complete upload are on this machine; this counts as using it. Raises: KnownError
        ``upload_not_found``, ``upload_incomplete``; with a bucket, what ``Storage.fetch`` does."""
        upload = self.get(tenant, upload_id)
        if not upload.complete:
            raise KnownError(
                "upload_incomplete",
                f"{upload.offset} of {upload.length} bytes of the upload {upload_id} are here",
                "Send the rest first: HEAD /v1/uploads/{id} says where to go on.",
            )
        folder = self._folder(tenant, upload_id)
        if self._storage is not None:
            key, said = _key(tenant, upload_id), _said(upload)
            self._storage.write(f"{key}/{_COMPLETE}", canonical_json(said))  # its age is that of the last use
            if not (folder / _COMPLETE).is_file():
                self._storage.fetch(f"{key}/{CONTENT}", folder / CONTENT, upload.sha256, check)
                write_json(folder / _COMPLETE, said)
        os.utime(folder / _COMPLETE)
        return folder / CONTENT

    def open(self, tenant: str, upload_id: str) -> Content:
        """The content of an incomplete upload, for one writer; close it. Raises: KnownError as ``get``;
        ``upload_locked``, ``upload_complete``."""
        self.get(tenant, upload_id)
        content = self._lock(tenant, upload_id)
        try:
            if not self.get(tenant, upload_id).complete:  # looked at again, now that nobody else can complete it
                return content
        except BaseException:
            content.close()
            raise
        content.close()
        raise KnownError("upload_complete", f"the upload {upload_id} is complete", "Use its id in a job.")

    def _lock(self, tenant: str, upload_id: str) -> Content:
        try:
            return Content(self._folder(tenant, upload_id))
        except FileNotFoundError as error:
            raise _not_found(upload_id) from error

    def append(self, tenant: str, content: Content, data: memoryview, *, reserved: bool) -> None:
        """Write bytes at the end of an upload.

        Args:
            reserved: whether ``create`` was told of these bytes; else the tenant's quota is asked now.

        Raises:
            KnownError: ``storage_quota_exceeded``, ``disk_full``; OSError.
        """
        if reserved:
            self._check_disk(len(data))
            content.append(data)
        else:
            with self._room_for(tenant, len(data)):
                content.append(data)

    def complete(self, tenant: str, content: Content, sha256: str | None) -> Upload:
        """All bytes are here: check them, make them durable, and make the upload usable.

        Args:
            sha256: of the content where it is known; None reads it again.

        Raises:
            KnownError: ``checksum_mismatch``; then the upload is gone. With a bucket, what ``Storage.put`` raises; then
                it can be completed again.
        """
        upload_id = content.folder.name
        said = read_json(content.folder / _INCOMING)
        content.sync()
        if sha256 is None:
            digest = hashlib.sha256()
            content.read_into(digest.update)
            sha256 = digest.hexdigest()
        if said["sha256"] not in (None, sha256):
            _remove(content.folder)
            raise KnownError(
                "checksum_mismatch",
                f"the bytes received have sha256 {sha256}, not {said['sha256']}; the upload was removed",
                "Upload again; if it happens again, compute the sha256 of the file anew.",
            ).at("/sha256")
        upload = Upload(
            upload_id, said["filename"], content.offset, sha256, said["metadata"], content.offset, complete=True
        )
        if self._storage is not None:
            key = _key(tenant, upload_id)
            self._storage.put(content.folder / CONTENT, f"{key}/{CONTENT}")
            self._storage.write(f"{key}/{_COMPLETE}", canonical_json(_said(upload)))
        write_json(content.folder / _COMPLETE, _said(upload))
        (content.folder / _INCOMING).unlink()
        return upload

    def remove(self, tenant: str, upload_id: str) -> None:
        """Remove an upload, complete or not. Raises: KnownError ``upload_not_found``, ``upload_locked``."""
        upload = self._find(tenant, upload_id)
        if self._storage is not None and upload.complete:
            self._storage.delete(_key(tenant, upload_id), first=_COMPLETE)
            if not self._folder(tenant, upload_id).is_dir():
                return
        content = self._lock(tenant, upload_id)
        try:
            _remove(content.folder)
        finally:
            content.close()

    def discard(self, content: Content) -> None:
        """Remove the upload whose content the caller holds."""
        if content.folder.is_dir():
            _remove(content.folder)

    def sweep(self, retention_s: float, in_use: Callable[[str], Collection[str]]) -> int:
        """Remove what expired, and complete uploads that were not used for long; with a bucket there, and here the
        copies that no job uses.

        Args:
            retention_s: how long a complete upload that no job uses is kept after its last use, in seconds.
            in_use: the ids that a tenant's jobs still need; asked where there is something to remove.

        Returns:
            How many were removed.
        """
        if self._storage is None:
            return self._sweep_here(retention_s, in_use)
        return self._sweep_bucket(self._storage, retention_s, in_use) + self.sweep_copies(in_use)

    def sweep_copies(self, in_use: Callable[[str], Collection[str]]) -> int:
        """With a bucket: remove what expired here, and copies that were not used for a day; returns how many."""
        return self._sweep_here(_COPY_S, in_use)

    def _sweep_here(self, retention_s: float, in_use: Callable[[str], Collection[str]]) -> int:
        removed = 0
        for tenant in self._root.glob("*"):
            over = [folder for folder in tenant.glob("upl_*") if self._is_over(folder, retention_s)]
            kept = in_use(tenant.name) if over else ()
            removed += sum(self._sweep_one(folder, retention_s) for folder in over if folder.name not in kept)
        return removed

    def _sweep_bucket(self, storage: Storage, retention_s: float, in_use: Callable[[str], Collection[str]]) -> int:
        newest: dict[str, float] = {}  # by folder: when it was used, or content without a record was written
        complete = set()
        for file in storage.files("uploads"):
            folder, _, name = file.key.rpartition("/")
            newest[folder] = max(newest.get(folder, 0), file.modified)
            if name == _COMPLETE:
                complete.add(folder)
        removed, kept = 0, dict[str, Collection[str]]()
        for folder, modified in newest.items():
            if modified + (retention_s if folder in complete else self._limits.expiry_s) >= time.time():
                continue
            _, tenant, upload_id = folder.split("/")
            if tenant not in kept:
                kept[tenant] = in_use(tenant)
            record = storage.file(f"{folder}/{_COMPLETE}")  # looked at again: it may have been used just now
            if upload_id not in kept[tenant] and (record is None or record.modified <= modified):
                storage.delete(folder, first=_COMPLETE)
                removed += 1
        return removed

    def _sweep_one(self, folder: Path, retention_s: float) -> bool:
        try:
            content = self._lock(folder.parent.name, folder.name)
        except KnownError:  # a byte came after all, or somebody else removed it
            return False
        try:
            if over := self._is_over(folder, retention_s):
                _remove(folder)
            return over
        finally:
            content.close()

    def _is_over(self, folder: Path, retention_s: float) -> bool:
        try:
            return (folder / _COMPLETE).stat().st_mtime + retention_s < time.time()
        except FileNotFoundError:
            try:
                return (folder / CONTENT).stat().st_mtime + self._limits.expiry_s < time.time()
            except FileNotFoundError:
                return False

    def _folder(self, tenant: str, upload_id: str) -> Path:
        return self._root / tenant / upload_id

    @contextmanager
    def _room_for(self, tenant: str, more: int) -> Iterator[None]:
        """A block in which so many bytes may be added: nobody else adds to the tenant's meanwhile."""
        self._check_disk(more)
        if not self._limits.tenant_bytes:
            yield
            return
        descriptor = os.open(self._root / tenant, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            used = sum(self._taken(tenant).values())
            if used + more > self._limits.tenant_bytes:
                raise KnownError(
                    "storage_quota_exceeded",
                    f"{more} more bytes with the {used} that your uploads take are above {self._limits.tenant_bytes}",
                    "Delete uploads that are no longer needed: DELETE /v1/uploads/{id}.",
                )
            yield
        finally:
            os.close(descriptor)

    def _taken(self, tenant: str) -> dict[str, int]:
        """Bytes that each upload counts for."""
        folders = (self._root / tenant).glob("upl_*")
        if self._storage is None:
            return {folder.name: _reserved(folder) for folder in folders}
        kept = {Path(file.key).parts[2]: file.bytes for file in self._storage.files(f"uploads/{tenant}")
                if file.key.endswith(f"/{CONTENT}")}  # fmt: skip
        return kept | {folder.name: _reserved(folder) for folder in folders if (folder / _INCOMING).is_file()}

    def _check_disk(self, more: int) -> None:
        free = shutil.disk_usage(self._root).free
        if free - more < self._limits.free_bytes:
            raise KnownError(
                "disk_full",
                f"{more} bytes are to be stored, {free} are free, and {self._limits.free_bytes} have to stay free",
                "Try again later, or ask the operator for space (KNOWN_MIN_FREE_BYTES).",
                retryable=True,
            )


def _key(tenant: str, upload_id: str) -> str:
    return f"uploads/{tenant}/{upload_id}"


def _complete(upload_id: str, record: dict[str, Any]) -> Upload:
    said = forward(record, STEPS, f"upload {upload_id}")
    return Upload(upload_id, said["filename"], said["bytes"], said["sha256"], said.get("metadata", ""),
                  offset=said["bytes"], complete=True)  # fmt: skip


def _said(upload: Upload) -> dict[str, Any]:
    """The record of a complete upload."""
    known = {"filename": upload.filename, "bytes": upload.length, "sha256": upload.sha256, "metadata": upload.metadata}
    return {SCHEMA: newest(STEPS), "id": upload.id, "object": "upload", **known}


def _not_found(upload_id: str) -> KnownError:
    return KnownError("upload_not_found", f"there is no upload {upload_id[:80]!r}", "POST /v1/uploads gives an id.")


def _reserved(folder: Path) -> int:
    """What an upload counts for: its bytes, or those it will have."""
    try:
        size = (folder / CONTENT).stat().st_size
        return max(size, read_json(folder / _INCOMING)["bytes"] or 0)
    except FileNotFoundError:  # complete, or just removed
        return (folder / CONTENT).stat().st_size if (folder / CONTENT).is_file() else 0


def _remove(folder: Path) -> None:
    for name in (_COMPLETE, _INCOMING):  # first, so that whatever stops the rest, it is not there any more
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder)
