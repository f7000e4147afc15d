"""Routes about uploads: whole in one POST, or resumable with tus 1.0.0."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.dependencies import Uploads, Who
from app.keys.caller import Caller
from app.problems import problem_responses
from app.uploads.record import Upload
from app.uploads.schemas import UPLOAD_EXAMPLE, UploadView, view
from app.uploads.service import UploadService
from app.uploads.tus import (
    CHUNK_TYPE,
    EXTENSIONS,
    Checksum,
    check_version,
    parse_metadata,
    progress_headers,
)
from known_core.errors import KnownError

router = APIRouter(tags=["uploads"])
_UPLOAD = {"content": {"application/json": {"example": UPLOAD_EXAMPLE}}}
_BYTES = {"schema": {"type": "string", "format": "binary"}, "example": "(the bytes)"}
UploadId = Annotated[str, Path(pattern=r"^upl_[0-9a-f]{24}$", examples=["upl_0123456789abcdef01234567"])]
TusVersion = Annotated[str | None, Header(alias="Tus-Resumable", description="1.0.0: speak tus", examples=["1.0.0"])]
ContentType = Annotated[str, Header(alias="Content-Type", include_in_schema=False)]
ContentLength = Annotated[int | None, Header(alias="Content-Length", ge=0, include_in_schema=False)]
UploadChecksum = Annotated[
    str | None, Header(alias="Upload-Checksum", max_length=200, description="of this body: sha256 (or sha1), base64")
]


def _body(content_type: str, required: bool) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {content_type: _BYTES}}}


@router.options("/v1/uploads", status_code=204, summary="What of tus the service speaks", response_class=Response)
def describe_uploads(uploads: Uploads) -> Response:
    """Version, extensions, checksum algorithms and the largest upload, in headers."""
    headers = {
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(uploads.max_bytes),
        "Tus-Checksum-Algorithm": "sha256,sha1",
        "Allow": "OPTIONS, POST",
    }
    return Response(status_code=204, headers=headers)


@router.post("/v1/uploads", status_code=201, summary="Upload a file, or begin a resumable upload",
             responses={201: _UPLOAD, **problem_responses(400, 408, 412, 413, 415, 422, 460, 503)},
             openapi_extra=_body("application/octet-stream", required=False))  # fmt: skip
async def create_upload(
    request: Request,
    response: Response,
    uploads: Uploads,
    caller: Who,
    filename: Annotated[str, Query(max_length=255, description="your name for it", examples=["model.zip"])] = "upload",
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$", description="checked against the bytes")] = None,
    content_type: ContentType = "application/octet-stream",
    content_length: ContentLength = None,
    tus_resumable: TusVersion = None,
    upload_length: Annotated[int | None, Header(alias="Upload-Length", ge=0, description="tus: of the file")] = None,
    upload_metadata: Annotated[
        str, Header(alias="Upload-Metadata", max_length=4096, description="tus: filename and sha256, in base64")
    ] = "",
    upload_checksum: UploadChecksum = None,
) -> UploadView:
    """Without tus the body is the file:
    ``curl -H 'Content-Type: application/octet-stream' --data-binary @model.zip URL``.
    With ``Tus-Resumable: 1.0.0`` the answer's Location is where to PATCH; a body is its first bytes."""
    if tus_resumable is None:
        if content_type.startswith(("multipart/", "application/x-www-form-urlencoded")):
            raise KnownError(
                "media_type_unsupported",
                f"the body is {content_type.partition(';')[0]}",
                "Send the file itself as application/octet-stream (curl --data-binary with -H 'Content-Type: ...').",
            )
        return view(await uploads.receive(caller, request.stream(), filename, sha256, content_length))
    check_version(tus_resumable)
    checksum = Checksum(upload_checksum) if upload_checksum else None
    upload = await run_in_threadpool(_create, uploads, caller, upload_length, upload_metadata)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    if content_type == CHUNK_TYPE:
        upload = await uploads.append(caller, upload.id, 0, request.stream(), content_length, checksum)
    response.headers.update(progress_headers(upload))
    return view(upload)


def _create(uploads: UploadService, caller: Caller, length: int | None, metadata: str) -> Upload:
    pairs = parse_metadata(metadata)
    sha256 = pairs.get("sha256")
    if length is None:
        raise KnownError("tus_header_invalid", "there is no Upload-Length header", "Say how long the file is.")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise KnownError("tus_header_invalid", f"the metadata's sha256 is {sha256[:80]!r}", "Give 64 hex digits.")
    return uploads.create(caller, pairs.get("filename", "upload")[:255], length, sha256, metadata)


@router.get("/v1/uploads/{upload_id}", summary="Show an upload",
            responses={200: _UPLOAD, **problem_responses(404, 410, 422)})  # fmt: skip
def get_upload(upload_id: UploadId, uploads: Uploads, caller: Who) -> UploadView:
    """Its size and sha256, and how much of it is here."""
    return view(uploads.get(caller, upload_id))


@router.head("/v1/uploads/{upload_id}", summary="Where a resumable upload is", response_class=Response,
             responses=problem_responses(404, 410, 412, 422))  # fmt: skip
def head_upload(upload_id: UploadId, uploads: Uploads, caller: Who, tus_resumable: TusVersion = None) -> Response:
    """Upload-Offset says how many bytes are here: go on there. Equal to Upload-Length: it is complete."""
    if tus_resumable is not None:
        check_version(tus_resumable)
    upload = uploads.get(caller, upload_id)
    headers = {"Cache-Control": "no-store", **progress_headers(upload)}
    if upload.length is not None:
        headers["Upload-Length"] = str(upload.length)
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return Response(headers=headers)


@router.patch("/v1/uploads/{upload_id}", status_code=204, summary="Send the next bytes of a resumable upload",
              response_class=Response, openapi_extra=_body(CHUNK_TYPE, required=True),
              responses=problem_responses(400, 404, 408, 409, 410, 412, 413, 415, 422, 423, 460, 503))  # fmt: skip
async def patch_upload(
    request: Request,
    upload_id: UploadId,
    uploads: Uploads,
    caller: Who,
    content_type: ContentType = "",
    content_length: ContentLength = None,
    tus_resumable: TusVersion = None,
    upload_offset: Annotated[
        int | None, Header(alias="Upload-Offset", ge=0, description="where these bytes go: the offset HEAD gives")
    ] = None,
    upload_checksum: UploadChecksum = None,
) -> Response:
    """What arrives before a connection breaks is kept. The last byte completes the upload: then its sha256 is checked,
    it is durable, and its id can be used in a job."""
    check_version(tus_resumable)
    if content_type != CHUNK_TYPE:
        raise KnownError("media_type_unsupported", f"Content-Type is {content_type[:80]!r}", f"Send {CHUNK_TYPE}.")
    if upload_offset is None:
        raise KnownError("tus_header_invalid", "there is no Upload-Offset header", "Send the offset that HEAD gives.")
    checksum = Checksum(upload_checksum) if upload_checksum else None
    upload = await uploads.append(caller, upload_id, upload_offset, request.stream(), content_length, checksum)
    return Response(status_code=204, headers=progress_headers(upload))


@router.delete("/v1/uploads/{upload_id}", status_code=204, summary="Delete an upload",
               responses=problem_responses(404, 409, 412, 422, 423))  # fmt: skip
def delete_upload(upload_id: UploadId, uploads: Uploads, caller: Who, tus_resumable: TusVersion = None) -> None:
    """Complete or not; 409 while a job that has not ended uses it."""
    if tus_resumable is not None:
        check_version(tus_resumable)
    uploads.remove(caller, upload_id)
