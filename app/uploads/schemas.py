"""What uploads look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.uploads.record import Upload


class UploadView(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    status: Literal["incomplete", "complete"] = Field(description="only a complete upload can be used in a job")
    filename: str = Field(description="as given; the server stores the bytes under a name of its own")
    bytes: int | None = Field(description="of the whole file; null while a body of unknown length arrives")
    received: int = Field(description="bytes that are here")
    sha256: str | None = Field(description="of a complete upload")


def view(upload: Upload) -> UploadView:
    return UploadView(
        id=upload.id,
        status="complete" if upload.complete else "incomplete",
        filename=upload.filename,
        bytes=upload.length,
        received=upload.offset,
        sha256=upload.sha256 if upload.complete else None,
    )


UPLOAD_EXAMPLE: dict[str, Any] = {
    "id": "upl_0123456789abcdef01234567",
    "object": "upload",
    "status": "complete",
    "filename": "model.safetensors",
    "bytes": 231172,
    "received": 231172,
    "sha256": "21fc2cbe6dfaaeff365815d3cdebe84ff7876a6bd4546615330ca91a1e9c773a",
}
