"""What artifacts look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class _Addresses(BaseModel):
    url: str
    download_url: str = Field(description="the same for whoever has the address, without an API key")
    expires_at: str = Field(description="until when download_url is good; RFC 3339, UTC")


class ArtifactView(_Addresses):
    path: str
    bytes: int
    sha256: str


class ArtifactList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ArtifactView]


class FigureView(_Addresses):
    name: str
    title: str
    caption: str = Field(description="how to read it")
    description: str = Field(description="what is drawn, in words, with its numbers")


class FigureList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FigureView]


ARTIFACT_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "path": "x2/model.safetensors",
            "bytes": 231204,
            "sha256": "914986c394ab950542432005ec3de49522087b9dfd5224a862fad2580dce265d",
            "url": "/v1/jobs/job_0123456789abcdef01234567/artifacts/x2/model.safetensors",
            "download_url": "/v1/jobs/job_0123456789abcdef01234567/artifacts/x2/model.safetensors?expires=1767225600"
            "&tenant=local&key=1f3c9a27&signature=52747a4d47af1ff1f33dc2fba1bbd5be52747a4d47af1ff1f33dc2fba1bbd5be",
            "expires_at": "2026-01-01T00:00:00Z",
        }
    ],
}

FIGURE_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "name": "before_after",
            "title": "Before and after: gain in downstream accuracy",
            "caption": "Every candidate was fine-tuned on the same downstream examples, seed by seed. ...",
            "description": "Mean paired gain of each candidate over the given weights (60.1 %) ...",
            "url": "/v1/jobs/job_0123456789abcdef01234567/figures/before_after.svg",
            "download_url": "/v1/jobs/job_0123456789abcdef01234567/figures/before_after.svg?expires=1767225600"
            "&tenant=local&key=1f3c9a27&signature=52747a4d47af1ff1f33dc2fba1bbd5be52747a4d47af1ff1f33dc2fba1bbd5be",
            "expires_at": "2026-01-01T00:00:00Z",
        }
    ],
}
