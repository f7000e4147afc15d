"""What endpoints ask for: the services, made once with the application."""

from typing import Annotated, cast

from fastapi import Depends, Request

from app.artifacts.service import ArtifactService
from app.events.service import EventService
from app.jobs.repository import JobRepository
from app.jobs.service import JobService
from app.settings import AppSettings
from app.uploads.service import UploadService


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


Settings = Annotated[AppSettings, Depends(_settings)]
Jobs = Annotated[JobService, Depends(_jobs)]
Repository = Annotated[JobRepository, Depends(_repository)]
Events = Annotated[EventService, Depends(_events)]
Uploads = Annotated[UploadService, Depends(_uploads)]
Artifacts = Annotated[ArtifactService, Depends(_artifacts)]
