"""Routes about uploads."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request

from app.dependencies import Uploads, Who
from app.problems import problem_responses
from app.uploads.schemas import UPLOAD_EXAMPLE, UploadView
from known_core.errors import KnownError

router = APIRouter(tags=["uploads"])
_UPLOAD = {"content": {"application/json": {"example": UPLOAD_EXAMPLE}}}


@router.post(
    "/v1/uploads",
    status_code=201,
    summary="Upload a checkpoint or a data set",
    responses={201: _UPLOAD, **problem_responses(413, 415, 422, 503)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {
                    "schema": {"type": "string", "format": "binary"},
                    "example": "(the bytes of the file)",
                }
            },
        }
    },
)
async def create_upload(
    request: Request,
    uploads: Uploads,
    caller: Who,
    filename: Annotated[str, Query(max_length=255, description="your name for it", examples=["model.zip"])] = "upload",
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$", description="checked against the bytes")] = None,
    content_type: Annotated[str, Header()] = "application/octet-stream",
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> UploadView:
    """The body is the file: ``curl -H 'Content-Type: application/octet-stream' --data-binary @model.zip URL``."""
    if content_type.startswith(("multipart/", "application/x-www-form-urlencoded")):
        raise KnownError(
            "media_type_unsupported",
            f"the body is {content_type.partition(';')[0]}",
            "Send the file itself as application/octet-stream (curl --data-binary with -H 'Content-Type: ...').",
        )
    return await uploads.receive(caller, request.stream(), filename, sha256, content_length)


@router.get("/v1/uploads/{upload_id}", summary="Show an upload",
            responses={200: _UPLOAD, **problem_responses(404, 422)})  # fmt: skip
def get_upload(
    upload_id: Annotated[str, Path(pattern=r"^upl_[0-9a-f]{24}$", examples=["upl_0123456789abcdef01234567"])],
    uploads: Uploads,
    caller: Who,
) -> UploadView:
    """Its size and sha256."""
    return uploads.get(caller, upload_id)
