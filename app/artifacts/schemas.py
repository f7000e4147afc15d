"""What artifacts look like."""

from typing import Any, Literal

from pydantic import BaseModel


class ArtifactView(BaseModel):
    path: str
    bytes: int
    sha256: str
    url: str


class ArtifactList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ArtifactView]


ARTIFACT_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "path": "x2/model.safetensors",
            "bytes": 231204,
            "sha256": "914986c394ab950542432005ec3de49522087b9dfd5224a862fad2580dce265d",
            "url": "/v1/jobs/job_0123456789abcdef01234567/artifacts/x2/model.safetensors",
        }
    ],
}
