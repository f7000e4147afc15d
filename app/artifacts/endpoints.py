"""Routes about a job's report, manifest and files."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from app.artifacts.schemas import ARTIFACT_EXAMPLE, ArtifactList, ArtifactView
from app.dependencies import Artifacts, JobId
from app.problems import problem_responses

router = APIRouter(tags=["artifacts"])


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
def list_artifacts(job_id: JobId, artifacts: Artifacts) -> ArtifactList:
    """Every candidate stays downloadable, the selected one and the others."""
    entries = artifacts.manifest(job_id)["files"]
    return ArtifactList(
        data=[ArtifactView(**entry, url=f"/v1/jobs/{job_id}/artifacts/{entry['path']}") for entry in entries]
    )


@router.get("/v1/jobs/{job_id}/artifacts/{path:path}", summary="Download a file", response_class=FileResponse,
            responses={200: {"content": {"application/octet-stream": {"example": "(bytes)"}}},
                       206: {"description": "The bytes that Range asked for"},
                       **problem_responses(404, 409, 422)})  # fmt: skip
def get_artifact(
    job_id: JobId, path: Annotated[str, PathParameter(examples=["x2/model.safetensors"])], artifacts: Artifacts
) -> FileResponse:
    """The file, whole or by Range; its ETag is its sha256."""
    file, sha256 = artifacts.file(job_id, path)
    headers = {"ETag": f'"{sha256}"'} if sha256 else None
    return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers=headers)
