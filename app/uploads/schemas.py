"""What uploads look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class UploadView(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    filename: str = Field(description="as given; the server stores the bytes under a name of its own")
    bytes: int
    sha256: str


UPLOAD_EXAMPLE: dict[str, Any] = {
    "id": "upl_0123456789abcdef01234567",
    "object": "upload",
    "filename": "model.safetensors",
    "bytes": 231172,
    "sha256": "21fc2cbe6dfaaeff365815d3cdebe84ff7876a6bd4546615330ca91a1e9c773a",
}
