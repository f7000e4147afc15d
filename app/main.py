"""The application: services, routes, errors. Run with ``uvicorn --factory app.main:create_app``, or ``known serve``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis as AsyncRedis

import known_core
from app import problems
from app.artifacts import endpoints as artifacts
from app.artifacts.service import ArtifactService
from app.body_limit import BodyLimit
from app.events import endpoints as events
from app.events.service import EventService
from app.health import endpoints as health
from app.inspection import Inspector
from app.jobs import endpoints as jobs
from app.jobs.queue import make_celery
from app.jobs.repository import JobRepository, connect
from app.jobs.service import JobService
from app.settings import AppSettings
from app.uploads import endpoints as uploads
from app.uploads.repository import UploadRepository
from app.uploads.service import UploadService


def create_app(settings: AppSettings | None = None) -> FastAPI:
    """The API over the store and the folder that the settings name.

    Args:
        settings: read from the environment when None.
    """
    settings = settings or AppSettings()
    repository = JobRepository(connect(settings.redis_url))
    async_redis: AsyncRedis = AsyncRedis.from_url(
        settings.redis_url, decode_responses=True, socket_timeout=30, socket_connect_timeout=5, health_check_interval=25
    )
    event_service = EventService(async_redis)
    inspector = Inspector(settings.inspection_timeout_seconds)
    upload_service = UploadService(UploadRepository(settings.data / "uploads"), settings.max_upload_bytes)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        inspector.start()
        event_service.start()
        yield
        await event_service.stop()
        inspector.stop()
        await async_redis.aclose()

    api = FastAPIOffline(  # its /docs works on a machine without internet
        title="known",
        version=known_core.__version__,
        summary="Better pretrained weights to fine-tune from, without more data.",
        lifespan=lifespan,
    )
    api.state.settings = settings
    api.state.repository = repository
    api.state.uploads = upload_service
    api.state.events = event_service
    api.state.artifacts = ArtifactService(repository, settings)
    api.state.jobs = JobService(repository, make_celery(settings.redis_url), upload_service, inspector, settings)
    api.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)  # first added, so innermost: see there
    problems.install(api)
    for router in (jobs.router, events.router, artifacts.router, uploads.router, health.router):
        api.include_router(router)
    api.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    return api
