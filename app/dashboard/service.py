"""What each page shows, asked of the services that the API asks."""

from dataclasses import dataclass
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app.artifacts.schemas import ArtifactView
from app.artifacts.service import ArtifactService
from app.dashboard.intervals import Bar, intervals
from app.dashboard.snippets import Snippet, Snippets
from app.events.service import EventService
from app.jobs.record import JobEvent, JobStatus
from app.jobs.schemas import JobList, JobView
from app.jobs.service import JobService
from app.keys.caller import Caller
from app.settings import AppSettings
from app.times import rfc3339
from app.webhooks.schemas import DeliveryView
from app.webhooks.service import WebhookService

_EVENTS, _LOG_LINES, _JOBS = 100, 200, 20
_PHASES = (
    "downloading", "evaluating_before", "forgetting", "nowcasting", "calibrating", "evaluating_after", "charting",
    "packaging", "publishing",
)  # fmt: skip
_WITHOUT_DATA = ("downloading", "nowcasting", "charting", "packaging", "publishing")
_STAGES = {  # what a manifest's seconds are called, by the phase they are part of
    "inputs": "downloading", "head": "downloading", "settings": "downloading", "chain": "forgetting",
    "fan": "forgetting", "swa": "forgetting", "nowcast": "nowcasting", "calibration": "calibrating",
    "plane": "charting", "surface": "charting", "packaging": "packaging",
}  # fmt: skip


@dataclass(frozen=True)
class PhaseView:
    """One step of a job: ``state`` is done, now, or ahead; ``seconds`` is known once the job has ended."""

    name: str
    state: str
    seconds: float | None = None


@dataclass(frozen=True)
class JobPage:
    """Everything that the page of a job shows; ``report`` is None before it has succeeded."""

    job: JobView
    phases: list[PhaseView]
    actions: list[str]
    events: list[tuple[JobEvent, str]]  # newest first, each with its time
    log: str
    report: dict[str, Any] | None
    bars: dict[str, Bar]
    files: list[ArtifactView]
    deliveries: list[DeliveryView]
    snippets: list[Snippet]


class DashboardService:
    """Reads for a caller what the API would give them."""

    def __init__(
        self,
        jobs: JobService,
        events: EventService,
        artifacts: ArtifactService,
        webhooks: WebhookService,
        settings: AppSettings,
    ) -> None:
        self._jobs, self._events, self._artifacts, self._webhooks = jobs, events, artifacts, webhooks
        self._settings = settings

    def jobs(self, caller: Caller, after: str | None, status: JobStatus | None) -> JobList:
        return self._jobs.list(caller, after, _JOBS, status)

    def snippets(self, server: str) -> Snippets:
        """Args: server: the service's address, as the reader's browser has it."""
        return Snippets(server, with_key=self._settings.access == "keys")

    async def job(self, caller: Caller, job_id: str, server: str) -> JobPage:
        """Raises: JobNotFound."""
        newest = await self._events.newest(job_id, _EVENTS)
        return await run_in_threadpool(self._job, caller, job_id, server, newest)

    def _job(self, caller: Caller, job_id: str, server: str, newest: list[JobEvent]) -> JobPage:
        job = self._jobs.get(job_id)
        report = files = None
        seconds: dict[str, float] = {}
        if job.status is JobStatus.SUCCEEDED:
            report, files = self._artifacts.report(job_id), self._artifacts.list(caller.tenant, job_id).data
            seconds = self._artifacts.manifest(job_id).get("seconds", {})
        actions = _actions(job)
        figures = [figure["name"] for figure in report.get("figures", [])] if report else []
        return JobPage(
            job=job,
            phases=_phases(job, seconds),
            actions=actions,
            events=[(event, rfc3339(int(event.id.partition("-")[0]))) for event in newest],
            log=self._artifacts.logs(job_id, _LOG_LINES),
            report=report,
            bars=intervals(report["transfer"]) if report and "transfer" in report else {},
            files=files or [],
            deliveries=self._webhooks.page(caller, job_id, None, 20, None).data,
            snippets=self.snippets(server).of_job(job, actions, figures, files or []),
        )


def _actions(job: JobView) -> list[str]:
    """What may be done with a job now; the API refuses the rest."""
    if job.status.terminal:
        return (["republish"] if job.status is JobStatus.SUCCEEDED and not job.republishing else []) + ["delete"]
    if job.status is JobStatus.CANCELING:
        return []
    return ["resume" if job.pausing or job.status is JobStatus.PAUSED else "pause", "cancel"]


def _phases(job: JobView, seconds: dict[str, float]) -> list[PhaseView]:
    """The steps that a job goes through, and which of them are behind it."""
    publishes = bool((job.request.get("output") or {}).get("hub")) or job.republishing
    trained = "trajectory" not in job.request
    names = [name for name in _PHASES if trained or name in _WITHOUT_DATA]
    if not publishes:
        names.remove("publishing")
    took = _seconds_by_phase(seconds)
    if job.status is JobStatus.SUCCEEDED:
        return [PhaseView(name, "done", took.get(name)) for name in names]
    now = names.index(job.phase) if job.phase in names else -1
    last = "stopped" if job.status.terminal else "now"
    return [
        PhaseView(name, "done" if index < now else last if index == now else "ahead")
        for index, name in enumerate(names)
    ]


def _seconds_by_phase(seconds: dict[str, float]) -> dict[str, float]:
    """A manifest's seconds are those of stages: fan-0, evaluation-x2."""
    took: dict[str, float] = {}
    for stage, spent in seconds.items():
        if stage.startswith("evaluation-"):
            phase = "evaluating_before" if stage == "evaluation-unchanged" else "evaluating_after"
        else:
            phase = _STAGES.get(stage.rpartition("-")[0] or stage, "downloading")
        took[phase] = took.get(phase, 0.0) + spent
    return took
