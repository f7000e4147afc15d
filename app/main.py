"""The application: services, routes, errors. Run with ``uvicorn --factory app.main:create_app``, or ``known serve``."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff

import known_core
from app import problems
from app.artifacts import endpoints as artifacts
from app.artifacts.service import ArtifactService
from app.artifacts.signing import UrlSigner
from app.audit import endpoints as audit
from app.audit.middleware import RequestLog
from app.audit.service import AuditService
from app.body_limit import BodyLimit
from app.capabilities import endpoints as capabilities
from app.dashboard import endpoints as dashboard
from app.dashboard.pages import Assets
from app.dashboard.service import DashboardService
from app.dependencies import caller_of
from app.events import endpoints as events
from app.events.service import EventService
from app.health import endpoints as health
from app.inspection import Inspector
from app.jobs import endpoints as jobs
from app.jobs.queue import make_celery
from app.jobs.repository import JobRepository, connect
from app.jobs.secrets import Sealer, SecretKeys
from app.jobs.service import JobService
from app.keys.limits import RateLimits
from app.keys.service import KeyService
from app.keys.sessions import SessionService
from app.metrics import endpoints as metrics
from app.metrics.middleware import RequestMetrics
from app.metrics.repository import MetricsRepository
from app.metrics.service import Metrics
from app.settings import AppSettings
from app.traces import trace_requests
from app.uploads import endpoints as uploads
from app.uploads.repository import Limits, UploadRepository
from app.uploads.service import UploadService
from app.uploads.tus import TusHeaders
from app.webhooks import endpoints as webhooks
from app.webhooks.guard import Guard
from app.webhooks.repository import WebhookRepository
from app.webhooks.service import WebhookService
from known_core.logs import configure_logs

_log = logging.getLogger(__name__)
_SWEEP_S = 600  # between two looks for copies that nobody needs
_SWITCH_S = 0.0005  # what the event loop waits for a busy thread; Python's own 5 ms are felt by every open stream


def create_app(settings: AppSettings | None = None) -> FastAPI:
    """The API over the store and the folder that the settings name.

    Args:
        settings: read from the environment when None.
    """
    settings = settings or AppSettings()
    store = connect(settings.redis_url)
    repository, deliveries = JobRepository(store), WebhookRepository(store)
    async_redis: AsyncRedis = AsyncRedis.from_url(
        settings.redis_url,
        decode_responses=True,
        socket_timeout=30,
        socket_connect_timeout=5,
        health_check_interval=25,
        retry=AsyncRetry(ExponentialBackoff(cap=2, base=0.05), retries=10),  # from_url's own is none
    )
    figures = Metrics(MetricsRepository(connect(settings.redis_url, timeout_s=5, tries=2)), repository, settings)
    event_service = EventService(async_redis, figures.event_lag.observe)
    audit_service = AuditService(async_redis, settings.audit_entries)
    keys = KeyService(async_redis, settings)
    sealer = Sealer(settings)
    inspector = Inspector(settings.inspection_timeout_seconds)
    signer = UrlSigner(SecretKeys(settings), settings.download_url_seconds)
    limits = Limits(settings.max_tenant_bytes, settings.min_free_bytes, settings.upload_expiry_seconds)
    uploaded = UploadRepository(settings.data / "uploads", limits, settings.storage())
    upload_service = UploadService(
        uploaded,
        settings.max_upload_bytes,
        settings.upload_idle_seconds,
        repository.uploads_in_use,
    )
    webhook_service = WebhookService(deliveries, sealer, Guard.of(settings))
    artifact_service = ArtifactService(repository, settings, signer)

    def sweep_copies() -> None:
        artifact_service.sweep()
        uploaded.sweep_copies(repository.uploads_in_use)

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(_SWITCH_S)
        configure_logs("uvicorn", "uvicorn.error")
        audit_service.start()
        keys.warn_when_open()
        inspector.start()
        event_service.start()
        _before_the_end(event_service.let_go)
        copies = asyncio.create_task(_again_and_again(sweep_copies)) if settings.storage_url else None
        yield
        if copies is not None:
            copies.cancel()
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
    api.state.inspector = inspector
    api.state.uploads = upload_service
    api.state.events = event_service
    api.state.webhooks = webhook_service
    api.state.deliveries = deliveries
    api.state.audit = audit_service
    api.state.keys = keys
    api.state.sessions = SessionService(async_redis, sealer, settings.session_seconds)
    api.state.metrics = figures
    api.state.signer = signer
    api.state.limits = RateLimits(settings)
    api.state.artifacts = artifact_service
    api.state.jobs = JobService(
        repository, make_celery(settings.redis_url), upload_service, inspector, webhook_service, settings
    )
    api.state.dashboard = DashboardService(
        api.state.jobs, event_service, api.state.artifacts, webhook_service, settings
    )
    api.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)  # first added, so innermost: see there
    problems.install(api)
    api.add_middleware(TusHeaders)
    api.add_middleware(RequestMetrics, metrics=figures)
    api.add_middleware(RequestLog, audit=audit_service)
    for router in (
        jobs.router, events.router, artifacts.router, uploads.router, webhooks.router, audit.router,
        capabilities.router,
    ):  # fmt: skip
        api.include_router(
            router, dependencies=[Depends(caller_of)], responses=problems.problem_responses(401, 403, 429)
        )
    api.include_router(artifacts.files)
    api.include_router(health.router)
    api.include_router(dashboard.router)
    api.mount("/assets", Assets(packages=[("app.dashboard", "static")]))
    api.include_router(metrics.router)
    trace_requests(api)
    return api


async def _again_and_again(sweep: Callable[[], None]) -> None:
    """In a thread, every ten minutes. A worker sweeps too, but not on this machine where there is a bucket."""
    while True:
        try:
            await run_in_threadpool(sweep)
        except Exception:
            _log.exception("could not remove copies of what is in the bucket; will try again")
        await asyncio.sleep(_SWEEP_S)


def _before_the_end(let_go: Callable[[], None]) -> None:
    """Hear of TERM and Ctrl-C before uvicorn waits for open requests: it tells the application only after the last."""
    if threading.current_thread() is not threading.main_thread():
        return  # within a test, whose end is not a signal
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        uvicorns = signal.getsignal(number)

        def hear(number: int, frame: FrameType | None, then: object = uvicorns) -> None:
            loop.call_soon_threadsafe(let_go)
            if callable(then):
                then(number, frame)

        signal.signal(number, hear)
