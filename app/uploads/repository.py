"""Uploads on disk: one folder each, with the bytes and what is known of them."""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from app.uploads.schemas import UploadView
from known_core.errors import KnownError
from known_core.files import fsync_directory, read_json, write_json


class UploadRepository:
    """Args: root: the folder that holds the uploads, a folder for each tenant."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, tenant: str, upload_id: str) -> Path:
        """Where the bytes are. Raises: KnownError ``upload_not_found``, also where it is another tenant's."""
        if not (self._root / tenant / upload_id / "upload.json").is_file():
            raise KnownError("upload_not_found", f"there is no upload {upload_id}", "POST /v1/uploads gives an id.")
        return self._root / tenant / upload_id / "content"

    def get(self, tenant: str, upload_id: str) -> UploadView:
        """Raises: KnownError ``upload_not_found``."""
        return UploadView.model_validate(read_json(self.path(tenant, upload_id).parent / "upload.json"))

    def receive(self, tenant: str, upload_id: str) -> "Receiving":
        """A context that takes the bytes; what is not kept leaves nothing behind."""
        return Receiving(self._root / tenant / upload_id)


class Receiving:
    """Bytes on their way to disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = False

    def __enter__(self) -> "Receiving":
        self._folder.mkdir(parents=True)
        self._file: BinaryIO = (self._folder / "content").open("wb")
        return self

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def keep(self, upload: UploadView) -> None:
        """The upload is complete: make it durable and visible."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self._folder / "upload.json", upload.model_dump())
        fsync_directory(self._folder.parent)
        self._kept = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._kept:
            (self._folder / "content").unlink(missing_ok=True)
            self._folder.rmdir()
