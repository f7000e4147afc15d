"""What endpoints ask for: the services, made once with the application."""

from typing import Annotated, cast

from fastapi import Depends, Path, Request

from app.artifacts.service import ArtifactService
from app.events.service import EventService
from app.jobs.repository import JobNotFound, JobRepository
from app.jobs.service import JobService
from app.keys.caller import LOCAL, Caller
from app.settings import AppSettings
from app.uploads.service import UploadService
from app.webhooks.repository import DeliveryNotFound, WebhookRepository
from app.webhooks.service import WebhookService


def _settings(request: Request) -> AppSettings:
    return cast(AppSettings, request.app.state.settings)


def _jobs(request: Request) -> JobService:
    return cast(JobService, request.app.state.jobs)


def _repository(request: Request) -> JobRepository:
    return cast(JobRepository, request.app.state.repository)


def _events(request: Request) -> EventService:
    return cast(EventService, request.app.state.events)


def _uploads(request: Request) -> UploadService:
    return cast(UploadService, request.app.state.uploads)


def _artifacts(request: Request) -> ArtifactService:
    return cast(ArtifactService, request.app.state.artifacts)


def _webhooks(request: Request) -> WebhookService:
    return cast(WebhookService, request.app.state.webhooks)


def _deliveries(request: Request) -> WebhookRepository:
    return cast(WebhookRepository, request.app.state.deliveries)


def _caller() -> Caller:
    return LOCAL


def _own_job(
    job_id: Annotated[str, Path(pattern=r"^job_[0-9a-f]{24}$", examples=["job_0123456789abcdef01234567"])],
    caller: Annotated[Caller, Depends(_caller)],
    repository: Annotated[JobRepository, Depends(_repository)],
) -> str:
    """The id of a job that is there and the caller's. Raises: JobNotFound, also where it is another tenant's."""
    if repository.tenant(job_id) != caller.tenant:
        raise JobNotFound(job_id)
    return job_id


def _own_delivery(
    delivery_id: Annotated[str, Path(pattern=r"^msg_[0-9a-f]{24}$", examples=["msg_0123456789abcdef01234567"])],
    caller: Annotated[Caller, Depends(_caller)],
    deliveries: Annotated[WebhookRepository, Depends(_deliveries)],
) -> str:
    """The id of a delivery that is there and the caller's. Raises: DeliveryNotFound, also where it is another's."""
    if deliveries.tenant(delivery_id) != caller.tenant:
        raise DeliveryNotFound(delivery_id)
    return delivery_id


Settings = Annotated[AppSettings, Depends(_settings)]
Jobs = Annotated[JobService, Depends(_jobs)]
Repository = Annotated[JobRepository, Depends(_repository)]
Events = Annotated[EventService, Depends(_events)]
Uploads = Annotated[UploadService, Depends(_uploads)]
Artifacts = Annotated[ArtifactService, Depends(_artifacts)]
Webhooks = Annotated[WebhookService, Depends(_webhooks)]
Who = Annotated[Caller, Depends(_caller)]
JobId = Annotated[str, Depends(_own_job)]
DeliveryId = Annotated[str, Depends(_own_delivery)]
