"""Jobs: accept, show, cancel, publish again."""

import logging
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from app.inspection import Inspector
from app.jobs.deletion import delete_job
from app.jobs.placement import CONTROL, Device, Needs, Queue, place
from app.jobs.queue import wake
from app.jobs.record import Job, JobStatus, new_job_id
from app.jobs.repository import JobRepository, Reservation
from app.jobs.schemas import (
    CheckpointList,
    CheckpointView,
    DatasetInput,
    DryRun,
    EnhanceRequest,
    JobList,
    JobUrls,
    JobView,
    ModelInput,
    RepublishRequest,
    StateInput,
)
from app.jobs.secrets import Sealer
from app.keys.caller import Caller
from app.keys.limits import TooMany
from app.settings import AppSettings
from app.storage.storage import Storage
from app.times import rfc3339 as _time
from app.uploads.service import UploadService
from app.webhooks.guard import shown
from app.webhooks.service import WebhookService
from known_core.errors import KnownError
from known_core.files import canonical_json, read_json, sha256_bytes
from known_core.logs import current
from known_core.spec import DataSettings, EvaluationSettings, HubTarget, JobSpec, with_paths
from known_core.traces import traceparent

_log = logging.getLogger(__name__)
Input = ModelInput | StateInput | DatasetInput
_STAGE_RECORD = re.compile(r"stages/[^/]+/[^/]+/stage\.json")
_LOOK_AGAIN_S = 30  # when a tenant that has too many jobs waiting may try again


class JobService:
    """See the endpoints for what each method promises."""

    def __init__(
        self,
        repository: JobRepository,
        celery: Celery,
        uploads: UploadService,
        inspector: Inspector,
        webhooks: WebhookService,
        settings: AppSettings,
    ) -> None:
        self._repository = repository
        self._celery = celery
        self._uploads = uploads
        self._inspector = inspector
        self._webhooks = webhooks
        self._settings = settings
        self._storage = settings.storage()
        self._sealer = Sealer(settings)

    def enhance(self, caller: Caller, request: EnhanceRequest, token: str | None, key: str | None = None) -> JobView:
        """Check the inputs, record the job, wake a worker: in that order, so an accepted job is never lost.

        Args:
            token: of the Hub, where the request brings one.
            key: makes it idempotent: the same request with the same key is the same job, for two days.

        Raises:
            KnownError: ``idempotency_key_reused``, ``idempotency_key_in_flight``, and what is wrong with the inputs.
        """
        job_id = new_job_id()
        if key is None:
            return self._create(caller, job_id, request, token)
        fingerprint = sha256_bytes(canonical_json(request.model_dump(mode="json", exclude_unset=True)))
        first = self._repository.reserve(caller.tenant, key, fingerprint, job_id)
        if first is not None:
            return self._answer_again(key, fingerprint, first)
        try:
            with self._repository.holding_reservation(caller.tenant, key):
                job = self._create(caller, job_id, request, token)
        except BaseException:
            if not self._repository.exists(job_id):
                self._repository.drop_reservation(caller.tenant, key)
            raise
        self._repository.keep_reservation(caller.tenant, key, fingerprint, job_id)
        return job

    def _answer_again(self, key: str, fingerprint: str, first: Reservation) -> JobView:
        if fingerprint != first.fingerprint:
            raise KnownError(
                "idempotency_key_reused",
                f"the Idempotency-Key {key[:80]!r} came with another request before",
                "Use a new key for a new request.",
            )
        if not first.made:
            raise KnownError(
                "idempotency_key_in_flight",
                f"the request with the Idempotency-Key {key[:80]!r} is still being answered",
                "Send it again in a moment.",
                retryable=True,
            )
        return self.get(first.job_id)

    def _create(self, caller: Caller, job_id: str, request: EnhanceRequest, token: str | None) -> JobView:
        webhook = self._webhooks.accept(request.webhook)
        spec, inspected = self._inspect(caller, request, job_id, token)
        recorded = self._repository.create(
            job_id,
            caller.tenant,
            {
                "request": _shown(request),
                "spec": with_paths(spec, self._portable).model_dump(mode="json"),
                "hub": inspected["hub"],
                "resolved": inspected["resolved"],
                "estimate": inspected["estimate"],
                "needs": asdict(Needs.of(request.device, inspected["estimate"])),
                "request_id": current("request_id"),
                "traceparent": traceparent(),
                "metadata": request.metadata,
                **({"webhook": webhook} if webhook else {}),
            },
            self._sealer.seal(token) if token else None,
            self._settings.max_queued_jobs,
        )
        if not recorded:
            raise TooMany(
                "quota_exceeded",
                f"{self._settings.max_queued_jobs} jobs of the tenant {caller.tenant} wait already",
                "Send it again when one of them has begun, or cancel one.",
                _LOOK_AGAIN_S,
            )
        self._place(job_id)
        return self.get(job_id)

    def dry_run(self, caller: Caller, request: EnhanceRequest, token: str | None) -> DryRun:
        """What was understood of the inputs, and what the job will take; nothing is recorded."""
        self._webhooks.accept(request.webhook)
        _, inspected = self._inspect(caller, request, new_job_id(), token)
        return DryRun(**{name: inspected[name] for name in ("resolved", "estimate", "no_estimate")})

    def _inspect(
        self, caller: Caller, request: EnhanceRequest, job_id: str, token: str | None
    ) -> tuple[JobSpec, dict[str, Any]]:
        """The spec with its revisions resolved, and what the inspection found."""
        inputs = _inputs(request)
        folder = self._settings.job_folder(job_id) / "hub"
        paths = {name: self._path(caller, name, given, folder) for name, given in inputs.items()}
        evaluation = request.evaluation
        spec = JobSpec(
            model=paths.get("model"),
            config=request.model.config if request.model else None,
            base=paths.get("base"),
            dataset=paths.get("dataset"),
            data=_data_settings(request.dataset),
            downstream=paths.get("downstream"),
            downstream_data=_data_settings(evaluation.downstream),
            trajectory=tuple(paths[f"state-{index}"] for index in range(5)) if request.trajectory else None,
            task=request.task,
            forgetting=request.forgetting,
            nowcast=request.nowcast,
            evaluation=EvaluationSettings(**evaluation.model_dump(exclude={"downstream"})),
            output=request.output,
            file_names={
                name: self._uploads.get(caller, given.upload_id).filename
                for name, given in inputs.items()
                if given.upload_id is not None
            },
        )
        hub = {
            name: {"repo_id": given.hub.repo_id, "revision": given.hub.revision}
            for name, given in inputs.items()
            if given.hub is not None
        }
        inspected = self._inspector.inspect(
            spec,
            hub,
            self._settings.hub_access(token),
            calibration_of(self._repository.worker_facts(), request.device),
        )
        resolved_paths = {"base": folder / "base"} if "base" in inspected["hub"] and spec.base is None else {}
        return spec.model_copy(update={"origins": inspected["resolved"]["sources"], **resolved_paths}), inspected

    def _portable(self, path: Path) -> Path:
        """As a record has it: below the data folder, which each machine may have elsewhere."""
        return path.relative_to(self._settings.data)

    def _path(self, caller: Caller, name: str, given: Input, folder: Path) -> Path:
        if given.upload_id is None:
            return folder / name
        try:
            return self._uploads.path(caller, given.upload_id)
        except KnownError as error:
            error.code = "upload_unknown"  # the request is wrong, not its address: 422, not 404
            raise error.at(f"{_pointer(name)}/upload_id") from error

    def view(self, job: Job) -> JobView:
        """A record as the API shows it."""
        return _view(job, self._settings.job_retention_days)

    def get(self, job_id: str) -> JobView:
        return self.view(self._repository.get(job_id))

    def list(self, caller: Caller, after: str | None, limit: int, status: JobStatus | None) -> JobList:
        jobs, more = self._repository.page(caller.tenant, after, limit, status)
        data = [self.view(job) for job in jobs]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return JobList(data=data, first_id=first, last_id=last, has_more=more)

    def cancel(self, job_id: str) -> JobView:
        """Raises: KnownError ``job_ended``."""
        if self._repository.cancel(job_id) is None:
            status = self._repository.status(job_id)
            raise KnownError("job_ended", f"the job has ended: it is {status.value}", "Start a new one.")
        return self.get(job_id)

    def pause(self, job_id: str) -> JobView:
        """Raises: KnownError ``job_ended``."""
        self._repository.pause(job_id)
        return self.get(job_id)

    def resume(self, job_id: str) -> JobView:
        """Raises: KnownError ``job_ended``, ``job_not_paused``."""
        if self._repository.resume(job_id) is JobStatus.QUEUED:
            self._place(job_id)
        return self.get(job_id)

    def checkpoints(self, job_id: str) -> CheckpointList:
        """The stages of a job that are finished, and still kept."""
        if self._storage is not None:
            return _stored_checkpoints(self._storage, job_id)
        finished: list[tuple[float, CheckpointView]] = []
        for record in (self._settings.run_folder(job_id) / "work").glob("[!.]*/stage.json"):
            with suppress(FileNotFoundError):  # swept, or deleted, meanwhile
                shown = CheckpointView(
                    stage=record.parent.name.rpartition("-")[0],
                    seconds=read_json(record)["seconds"],
                    bytes=sum(file.stat().st_size for file in record.parent.rglob("*") if file.is_file()),
                )
                finished.append((record.stat().st_mtime, shown))
        return CheckpointList(data=[shown for _, shown in sorted(finished, key=lambda pair: pair[0])])

    def delete(self, job_id: str) -> None:
        """Raises: KnownError ``job_busy``."""
        if not delete_job(self._repository, self._settings.job_folder(job_id), job_id, self._storage):
            status = self._repository.status(job_id)
            raise KnownError(
                "job_busy", f"the job is {status.value}, or is being published", "Cancel it first, or wait for its end."
            )

    def republish(self, job_id: str, request: RepublishRequest, token: str | None) -> JobView:
        """Raises: KnownError ``result_not_ready``, ``publish_target_missing``, ``publish_in_progress``."""
        job = self._repository.get(job_id)
        asked = (job.spec.get("output") or {}).get("hub")
        target = request.hub or (HubTarget.model_validate(asked) if asked else None)
        if target is None:
            raise KnownError(
                "publish_target_missing", "neither the job nor this request names a repository", 'Give "hub".'
            ).at("/hub")
        wish = {"hub": target.model_dump(mode="json"), "candidate": request.candidate}
        if not self._repository.republish(job_id, wish, self._sealer.seal(token) if token else None):
            raise KnownError("publish_in_progress", "the job is being published already", "Wait until it is done.")
        self._wake(job_id, CONTROL)
        return self.get(job_id)

    def _place(self, job_id: str) -> None:
        """Wake a worker that can take the job; where there is none, the record says what it waits for."""
        placement = place(self._repository.needs(job_id), self._repository.capacities())
        self._repository.wait_for(job_id, placement.waiting_for)
        self._wake(job_id, *placement.queues)

    def _wake(self, job_id: str, *queues: Queue) -> None:
        """The job is recorded, and so accepted; where its wake-up cannot be sent, a reaper sends one."""
        try:
            for queue in queues:
                wake(self._celery, job_id, queue)
        except OperationalError as error:
            _log.warning("no wake-up for %s, the reaper will send one: %s", job_id, error)


def _stored_checkpoints(storage: Storage, job_id: str) -> CheckpointList:
    records = [file for file in storage.files(f"stages/{job_id}") if _STAGE_RECORD.fullmatch(file.key)]
    data = []
    for record in sorted(records, key=lambda file: file.modified):
        if (said := storage.record(record.key)) is not None:  # else swept, or deleted, meanwhile
            stage = record.key.split("/")[2].rpartition("-")[0]
            taken = sum(file["bytes"] for file in said["files"])
            data.append(CheckpointView(stage=stage, seconds=said["seconds"], bytes=taken + record.bytes))
    return CheckpointList(data=data)


def _shown(request: EnhanceRequest) -> dict[str, Any]:
    """The request as it is kept and given back: without what the URL of a webhook may hold of secrets."""
    given = request.model_dump(mode="json", exclude_unset=True)
    if request.webhook is not None:
        given["webhook"]["url"] = shown(request.webhook.url)
    return given


def _inputs(request: EnhanceRequest) -> dict[str, Input]:
    """Every input that a request names."""
    named: dict[str, Input | None] = {
        "model": request.model,
        "base": request.model.base if request.model else None,
        "dataset": request.dataset,
        "downstream": request.evaluation.downstream,
        **{f"state-{index}": state for index, state in enumerate(request.trajectory or ())},
    }
    return {name: given for name, given in named.items() if given is not None}


def _pointer(name: str) -> str:
    known = {"base": "/model/base", "downstream": "/evaluation/downstream"}
    return known.get(name) or f"/{name}".replace("/state-", "/trajectory/")


def _data_settings(given: DatasetInput | None) -> DataSettings:
    return DataSettings(**given.model_dump(include=set(DataSettings.model_fields))) if given else DataSettings()


def _view(job: Job, retention_days: float) -> JobView:
    base = f"/v1/jobs/{job.id}"
    names = (
        "events", "logs", "cancel", "pause", "resume", "republish", "checkpoints", "report", "manifest", "artifacts"
    )  # fmt: skip
    expires = bool(retention_days) and job.finished_at is not None
    urls = JobUrls(self=base, **{name: f"{base}/{name}" for name in names})
    result = None
    if job.result is not None:
        result = {**job.result, "artifacts": urls.artifacts, "report": urls.report, "manifest": urls.manifest}
    return JobView.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "pausing": job.pausing,
            "waiting_for": job.waiting_for,
            "phase": job.phase,
            "progress": job.progress,
            "attempts": job.attempts,
            "cost": {"estimated": job.estimate, "actual": _actual(job)},
            "request": job.request,
            "resolved": job.resolved,
            "metadata": job.metadata,
            "result": result,
            "republishing": job.republish is not None,
            "error": job.error,
            "created_at": _time(job.created_at),
            "started_at": _time(job.started_at),
            "finished_at": _time(job.finished_at),
            "expires_at": _time((job.finished_at or 0) + round(retention_days * 86_400_000)) if expires else None,
            "urls": urls,
        }
    )


def _actual(job: Job) -> dict[str, Any]:
    seconds, usage = job.spent_ms / 1000, job.usage or {}
    return {
        "seconds": seconds,
        "gpu_seconds": seconds if usage.get("gpu_memory_bytes") is not None else 0.0,
        **{name: usage.get(name) for name in ("memory_bytes", "gpu_memory_bytes", "disk_bytes")},
    }


def calibration_of(workers: dict[str, dict[str, Any]], device: Device = "auto") -> dict[str, Any] | None:
    """That of the worker a job is estimated for: the first one by name that has a GPU, or else the first one.

    Args:
        device: what the request asks for; only workers with that one count.
    """
    found = [facts["calibration"] for facts in workers.values() if facts.get("calibration")]
    found = [calibration for calibration in found if device in ("auto", calibration["type"])]
    return next((device for device in found if device["type"] == "cuda"), found[0] if found else None)


def etag(job: JobView) -> str:
    """Changes whenever what the API shows of the job changes."""
    return f'"{sha256_bytes(job.model_dump_json().encode())[:32]}"'
