"""Routes about a job's report, manifest and files."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse

from app.artifacts.files import content_response, file_response, stored_response, wanted
from app.artifacts.schemas import ARTIFACT_EXAMPLE, FIGURE_EXAMPLE, ArtifactList, FigureList
from app.dependencies import Artifacts, JobId, ReadableJobId, Who
from app.problems import problem_responses

router = APIRouter(tags=["artifacts"])
files = APIRouter(tags=["artifacts"])  # asks for a key itself, where the address is not signed


_NONE_MATCH = Annotated[str | None, Header(alias="If-None-Match", include_in_schema=False)]
_DRAWN = {  # of a page or a figure of ours: it loads nothing and runs nothing, whatever a stranger's words in it say
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/v1/jobs/{job_id}/report", summary="The before/after report",
            responses={200: {"content": {
                "application/json": {"example": {
                    "selected": "x4", "conclusion": "x4 changes downstream accuracy by +0.80 [+0.31, +1.29] ..."}},
                "text/html": {"example": "<!doctype html> ..."}}},
                304: {"description": "The client has the page"},
                **problem_responses(404, 409, 422)})  # fmt: skip
def get_report(
    job_id: JobId,
    artifacts: Artifacts,
    format: Annotated[
        Literal["json", "html"] | None, Query(description="default: what Accept asks for, JSON where it does not say")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    if_none_match: _NONE_MATCH = None,
) -> Response:
    """Every figure with its interval, and the conclusion in words; or the page, with the figures drawn in it."""
    if (format or wanted(accept)) == "json":
        return JSONResponse(artifacts.report(job_id), headers={"Vary": "Accept"})
    page, sha256 = artifacts.file(job_id, "report.html")
    content = page.read_bytes()
    return content_response(content, "text/html; charset=utf-8", sha256, if_none_match, {**_DRAWN, "Vary": "Accept"})


@router.get("/v1/jobs/{job_id}/figures", summary="List the report's figures",
            responses={200: {"content": {"application/json": {"example": FIGURE_EXAMPLE}}},
                       **problem_responses(404, 409, 422)})  # fmt: skip
def list_figures(job_id: JobId, caller: Who, artifacts: Artifacts) -> FigureList:
    """What each shows, and where it is. ``download_url`` can be given to others, or to an ``img``."""
    return artifacts.figures(caller.tenant, job_id)


@files.get("/v1/jobs/{job_id}/figures/{name}.svg", summary="A figure of the report", response_class=Response,
           responses={200: {"content": {"image/svg+xml": {"example": "<svg> ... </svg>"}}},
                      304: {"description": "The client has the figure"},
                      **problem_responses(401, 403, 404, 409, 422, 429)})  # fmt: skip
def get_figure(
    job_id: ReadableJobId,
    name: Annotated[str, PathParameter(max_length=80, examples=["before_after"])],
    artifacts: Artifacts,
    if_none_match: _NONE_MATCH = None,
) -> Response:
    """Drawn from report.json, in the light or dark of where it is shown. Needs an API key, or the query of a
    ``download_url``."""
    svg, sha256 = artifacts.figure(job_id, name)
    return content_response(svg.encode(), "image/svg+xml", sha256, if_none_match, _DRAWN)


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
        307: {
            "description": "The file is in a bucket: GET it at Location, an address that expires, without the API key"
        },
        **problem_responses(401, 403, 404, 409, 416, 422, 429),
    },
}


@files.head("/v1/jobs/{job_id}/artifacts/{path:path}", summary="Size and ETag of a file", **_FILE)
@files.get("/v1/jobs/{job_id}/artifacts/{path:path}", summary="Download a file", **_FILE)
def get_artifact(
    request: Request,
    job_id: ReadableJobId,
    path: Annotated[str, PathParameter(examples=["x2/model.safetensors"])],
    artifacts: Artifacts,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=100-"], include_in_schema=False)] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", include_in_schema=False)] = None,
    if_none_match: _NONE_MATCH = None,
) -> Response:
    """The file, whole or by Range; its ETag is its sha256. Needs an API key, or the query of a ``download_url``."""
    stored = artifacts.stored(job_id, path)
    if stored is not None:
        return stored_response(stored, request.method, range_, if_range, if_none_match)
    file, sha256 = artifacts.file(job_id, path)
    return file_response(file, sha256, range_, if_range, if_none_match)
