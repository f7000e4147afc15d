"""Routes about jobs."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.responses import PlainTextResponse

from app.dependencies import Artifacts, Events, JobId, Jobs, Settings, Who
from app.jobs.record import Job, JobStatus
from app.jobs.schemas import (
    ENHANCE_EXAMPLES,
    JOB_EXAMPLE,
    REPUBLISH_EXAMPLES,
    CheckpointList,
    DryRun,
    EnhanceRequest,
    JobList,
    JobView,
    RepublishRequest,
)
from app.jobs.service import etag
from app.problems import problem_responses

router = APIRouter(tags=["jobs"])
HubToken = Annotated[
    str | None,
    Header(
        alias="X-Hub-Token",
        min_length=1,
        max_length=512,
        description="a token of the Hub for this request; sealed until the job has ended, never shown",
    ),
]
_JOB = {"content": {"application/json": {"example": JOB_EXAMPLE}}}


@router.post("/enhance", status_code=202, summary="Alias of POST /v1/enhance",
             responses={202: _JOB, **problem_responses(400, 422, 503)})  # fmt: skip
@router.post("/v1/enhance", status_code=202, summary="Enhance a checkpoint",
             responses={200: {"model": DryRun, "description": "With dry_run"}, 202: _JOB,
                        **problem_responses(400, 403, 404, 409, 422, 503)})  # fmt: skip
def enhance(
    request: Annotated[EnhanceRequest, Body(openapi_examples=ENHANCE_EXAMPLES)],
    jobs: Jobs,
    caller: Who,
    response: Response,
    dry_run: Annotated[bool, Query(description="only say what was understood; nothing is queued")] = False,
    token: HubToken = None,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="the same request with the same key is one job, for two days"),
    ] = None,
) -> JobView | DryRun:
    """Checks the inputs and queues the job. The answer is the job, and its address in Location."""
    if dry_run:
        response.status_code = 200
        return jobs.dry_run(caller, request, token)
    job = jobs.enhance(caller, request, token, idempotency_key)
    response.headers["Location"] = job.urls.self
    response.headers["Retry-After"] = "2"
    return job


@router.get("/v1/jobs", summary="List jobs, newest first",
            responses={200: {"content": {"application/json": {"example": {
                "object": "list", "data": [JOB_EXAMPLE], "first_id": JOB_EXAMPLE["id"], "last_id": JOB_EXAMPLE["id"],
                "has_more": False}}}}, **problem_responses(404, 422)})  # fmt: skip
def list_jobs(
    jobs: Jobs,
    caller: Who,
    after: Annotated[str | None, Query(description="the last_id of the page before", max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[JobStatus | None, Query(description="only jobs in this state")] = None,
) -> JobList:
    """A page of jobs; go on with ``after=last_id`` while ``has_more``."""
    return jobs.list(caller, after, limit, status)


@router.get("/v1/jobs/{job_id}", summary="Show a job", response_model=JobView,
            responses={200: _JOB, 304: {"description": "Not changed since If-None-Match"},
                       **problem_responses(404, 422)})  # fmt: skip
async def get_job(
    job_id: JobId,
    jobs: Jobs,
    events: Events,
    settings: Settings,
    response: Response,
    wait: Annotated[int, Query(ge=0, le=3600, description="seconds to wait for the job to end, or, with If-None-Match, "
                               "to change; at most KNOWN_MAX_WAIT_SECONDS are honoured")] = 0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> JobView | Response:  # fmt: skip
    """One job. With ``wait`` the answer comes when there is something new, or when the time is up."""

    def enough(job: Job) -> bool:
        return job.status.terminal if if_none_match is None else etag(jobs.view(job)) != if_none_match

    job = jobs.view(await events.wait_for(job_id, enough, min(wait, settings.max_wait_seconds)))
    tag = etag(job)
    if if_none_match == tag:
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return job


@router.post("/v1/jobs/{job_id}/cancel", status_code=202, summary="Cancel a job",
             responses={202: _JOB, **problem_responses(404, 409, 422)})  # fmt: skip
def cancel_job(job_id: JobId, jobs: Jobs) -> JobView:
    """A queued job ends at once; a running one when its process has been stopped, within seconds."""
    return jobs.cancel(job_id)


@router.post("/v1/jobs/{job_id}/pause", status_code=202, summary="Pause a job",
             responses={202: _JOB, **problem_responses(404, 409, 422)})  # fmt: skip
def pause_job(job_id: JobId, jobs: Jobs) -> JobView:
    """Its worker is free within seconds; what is finished is kept. A queued job is paused at once."""
    return jobs.pause(job_id)


@router.post("/v1/jobs/{job_id}/resume", status_code=202, summary="Go on with a paused job",
             responses={202: _JOB, **problem_responses(404, 409, 422)})  # fmt: skip
def resume_job(job_id: JobId, jobs: Jobs) -> JobView:
    """It is queued again, and goes on after its last finished stage."""
    return jobs.resume(job_id)


@router.get("/v1/jobs/{job_id}/checkpoints", summary="List the stages that are finished",
            responses={200: {"content": {"application/json": {"example": {
                "object": "list", "data": [{"stage": "fan-0", "seconds": 12.5, "bytes": 231204}]}}}},
                **problem_responses(404, 422)})  # fmt: skip
def list_checkpoints(job_id: JobId, jobs: Jobs) -> CheckpointList:
    """What a job that is paused, or interrupted, goes on from. Some time after a job has ended they are removed."""
    return jobs.checkpoints(job_id)


@router.delete("/v1/jobs/{job_id}", status_code=204, summary="Delete a job that has ended",
               responses=problem_responses(404, 409, 422))  # fmt: skip
def delete_job(job_id: JobId, jobs: Jobs) -> None:
    """Its record, events, log and artifacts. What was published to the Hub stays there."""
    jobs.delete(job_id)


@router.post("/v1/jobs/{job_id}/republish", status_code=202, summary="Put a finished job's result on the Hub (again)",
             responses={202: _JOB, **problem_responses(400, 404, 409, 422)})  # fmt: skip
def republish_job(
    job_id: JobId,
    jobs: Jobs,
    request: Annotated[RepublishRequest | None, Body(openapi_examples=REPUBLISH_EXAMPLES)] = None,
    token: HubToken = None,
) -> JobView:
    """The artifacts of the job are published as they are; what the Hub has already is not sent again."""
    return jobs.republish(job_id, request or RepublishRequest(), token)


@router.get("/v1/jobs/{job_id}/logs", response_class=PlainTextResponse, summary="What the job's process printed",
            responses={200: {"content": {"text/plain": {"example": "attempt 1\n"}}},
                       **problem_responses(404, 422)})  # fmt: skip
def get_logs(
    job_id: JobId, artifacts: Artifacts, tail: Annotated[int, Query(ge=1, le=100_000, description="last lines")] = 1000
) -> str:
    """The last lines of the log, all attempts in one."""
    return artifacts.logs(job_id, tail)
