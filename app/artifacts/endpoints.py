"""Routes about a job's report, manifest and files."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from app.artifacts.files import file_response
from app.artifacts.schemas import ARTIFACT_EXAMPLE, ArtifactList
from app.dependencies import Artifacts, JobId, ReadableJobId, Who
from app.problems import problem_responses

router = APIRouter(tags=["artifacts"])
files = APIRouter(tags=["artifacts"])  # asks for a key itself, where the address is not signed


@router.get("/v1/jobs/{job_id}/report", summary="The before/after report",
            responses={200: {"content": {"application/json": {"example": {
                "selected": "x4", "conclusion": "x4 changes downstream accuracy by +0.80 [+0.31, +1.29] points ..."}}}},
                **problem_responses(404, 409, 422)})  # fmt: skip
def get_report(job_id: JobId, artifacts: Artifacts) -> dict[str, Any]:
    """Every figure with its interval, and the conclusion in words. As Markdown: artifacts/report.md."""
    return artifacts.report(job_id)


@router.get("/v1/jobs/{job_id}/manifest", summary="Checksums, seeds and versions",
            responses={200: {"content": {"application/json": {"example": {
                "content_sha256": "e8fff8106a420fc7c6987c23a4aac8b2b2bf55505776eae9e6d15fadc94bdc60",
                "files": [{"path": "report.json", "bytes": 4603, "sha256": "52747a4d47af1ff1f33dc2fba1bbd5be"}]}}}},
                **problem_responses(404, 409, 422)})  # fmt: skip
def get_manifest(job_id: JobId, artifacts: Artifacts) -> dict[str, Any]:
    """What was used and what was made: enough to run the job again and to verify it."""
    return artifacts.manifest(job_id)


@router.get("/v1/jobs/{job_id}/artifacts", summary="List a job's files",
            responses={200: {"content": {"application/json": {"example": ARTIFACT_EXAMPLE}}},
                       **problem_responses(404, 409, 422)})  # fmt: skip
def list_artifacts(job_id: JobId, caller: Who, artifacts: Artifacts) -> ArtifactList:
    """Every candidate stays downloadable, the selected one and the others. ``download_url`` can be given to others."""
    return artifacts.list(caller.tenant, job_id)


_FILE: dict[str, Any] = {
    "response_class": FileResponse,
    "responses": {
        200: {"content": {"application/octet-stream": {"example": "(bytes)"}}},
        206: {"description": "The bytes that Range asked for"},
        304: {"description": "The client has the file"},
        **problem_responses(401, 403, 404, 409, 416, 422, 429),
    },
}


@files.head("/v1/jobs/{job_id}/artifacts/{path:path}", summary="Size and ETag of a file", **_FILE)
@files.get("/v1/jobs/{job_id}/artifacts/{path:path}", summary="Download a file", **_FILE)
def get_artifact(
    job_id: ReadableJobId,
    path: Annotated[str, PathParameter(examples=["x2/model.safetensors"])],
    artifacts: Artifacts,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=100-"], include_in_schema=False)] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", include_in_schema=False)] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match", include_in_schema=False)] = None,
) -> Response:
    """The file, whole or by Range; its ETag is its sha256. Needs an API key, or the query of a ``download_url``."""
    file, sha256 = artifacts.file(job_id, path)
    return file_response(file, sha256, range_, if_range, if_none_match)
