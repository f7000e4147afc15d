"""Jobs: accept, show, cancel."""

from datetime import UTC, datetime
from typing import Any

from celery import Celery

from app.inspection import Inspector
from app.jobs.queue import wake
from app.jobs.record import Job, JobStatus, new_job_id
from app.jobs.repository import JobRepository
from app.jobs.schemas import EnhanceRequest, JobList, JobUrls, JobView
from app.uploads.service import UploadService
from known_core.errors import KnownError
from known_core.files import sha256_bytes
from known_core.spec import EvaluationSettings, JobSpec


class JobService:
    """See the endpoints for what each method promises."""

    def __init__(self, repository: JobRepository, celery: Celery, uploads: UploadService, inspector: Inspector) -> None:
        self._repository = repository
        self._celery = celery
        self._uploads = uploads
        self._inspector = inspector

    def enhance(self, request: EnhanceRequest) -> JobView:
        """Check the inputs, record the job, wake a worker: in that order, so an accepted job is never lost."""
        spec = self._spec(request)
        resolved = self._inspector.inspect(spec)
        job_id = new_job_id()
        self._repository.create(
            job_id,
            {
                "request": request.model_dump(mode="json", exclude_unset=True),
                "spec": spec.model_dump(mode="json"),
                "resolved": resolved,
                "metadata": request.metadata,
            },
        )
        wake(self._celery, job_id)
        return self.get(job_id)

    def _spec(self, request: EnhanceRequest) -> JobSpec:
        def path(upload_id: str, pointer: str) -> Any:
            try:
                return self._uploads.path(upload_id)
            except KnownError as error:
                error.code = "upload_unknown"  # the request is wrong, not its address: 422, not 404
                raise error.at(pointer) from error

        downstream = request.evaluation.downstream
        return JobSpec(
            model=path(request.model.upload_id, "/model/upload_id"),
            config=request.model.config,
            dataset=path(request.dataset.upload_id, "/dataset/upload_id"),
            downstream=path(downstream.upload_id, "/evaluation/downstream/upload_id") if downstream else None,
            task=request.task,
            forgetting=request.forgetting,
            nowcast=request.nowcast,
            evaluation=EvaluationSettings(**request.evaluation.model_dump(exclude={"downstream"})),
            output=request.output,
        )

    def get(self, job_id: str) -> JobView:
        return view(self._repository.get(job_id))

    def list(self, after: str | None, limit: int, status: JobStatus | None) -> JobList:
        jobs, more = self._repository.page(after, limit, status)
        data = [view(job) for job in jobs]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return JobList(data=data, first_id=first, last_id=last, has_more=more)

    def cancel(self, job_id: str) -> JobView:
        """Raises: KnownError ``job_ended``."""
        if self._repository.cancel(job_id) is None:
            status = self._repository.status(job_id)
            raise KnownError("job_ended", f"the job has ended: it is {status.value}", "Start a new one.")
        return self.get(job_id)


def view(job: Job) -> JobView:
    """A record as the API shows it."""
    base = f"/v1/jobs/{job.id}"
    names = ("events", "logs", "cancel", "report", "manifest", "artifacts")
    urls = JobUrls(self=base, **{name: f"{base}/{name}" for name in names})
    result = None
    if job.result is not None:
        result = {**job.result, "artifacts": urls.artifacts, "report": urls.report, "manifest": urls.manifest}
    return JobView.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "phase": job.phase,
            "progress": job.progress,
            "attempts": job.attempts,
            "request": job.request,
            "resolved": job.resolved,
            "metadata": job.metadata,
            "result": result,
            "error": job.error,
            "created_at": _time(job.created_at),
            "started_at": _time(job.started_at),
            "finished_at": _time(job.finished_at),
            "urls": urls,
        }
    )


def etag(job: JobView) -> str:
    """Changes whenever what the API shows of the job changes."""
    return f'"{sha256_bytes(job.model_dump_json().encode())[:32]}"'


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
