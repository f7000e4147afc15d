"""What endpoints ask for: the services, made once with the application."""

from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.artifacts.service import ArtifactService
from app.artifacts.signing import UrlSigner
from app.audit.service import AuditService
from app.events.service import EventService
from app.inspection import Inspector
from app.jobs.repository import JobNotFound, JobRepository
from app.jobs.service import JobService
from app.keys.caller import Caller, Scope
from app.keys.limits import RateLimits
from app.keys.service import KeyService, require
from app.keys.sessions import SessionService
from app.settings import AppSettings
from app.uploads.service import UploadService
from app.webhooks.repository import DeliveryNotFound, WebhookRepository
from app.webhooks.service import WebhookService
from known_core.errors import KnownError

_bearer = HTTPBearer(auto_error=False, description="An API key: known keys create. Not needed in open mode.")


def _settings(request: Request) -> AppSettings:
    return cast(AppSettings, request.app.state.settings)


def _jobs(request: Request) -> JobService:
    return cast(JobService, request.app.state.jobs)


def _repository(request: Request) -> JobRepository:
    return cast(JobRepository, request.app.state.repository)


def _inspector(request: Request) -> Inspector:
    return cast(Inspector, request.app.state.inspector)


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


def _audit(request: Request) -> AuditService:
    return cast(AuditService, request.app.state.audit)


def _sessions(request: Request) -> SessionService:
    return cast(SessionService, request.app.state.sessions)


async def caller_of(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Whose request it is, by its key or its browser's session: counted, and allowed.

    Raises:
        KnownError: as KeyService, SessionService and RateLimits do.
    """
    caller = await _recognized(request, credentials)
    await cast(RateLimits, request.app.state.limits).count(caller)
    require(caller, Scope.READ if request.method in ("GET", "HEAD") else Scope.WRITE)
    return caller


async def _recognized(request: Request, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    """Whose key or session it is, not counted. Raises: as caller_of."""
    token = credentials.credentials if credentials else request.headers.get("authorization")
    in_session = token is None and request.app.state.settings.access == "keys"
    if in_session:
        token = await _sessions(request).token(request)
    return await caller_by_key(request, token, afresh=in_session)


def _may_read(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Callable[[], Awaitable[bool]]:
    """Says whether the key or session that began a long answer is still good."""

    async def ask() -> bool:
        try:
            await _recognized(request, credentials)
        except KnownError:
            return False
        return True

    return ask


async def caller_by_key(request: Request, token: str | None, *, afresh: bool = True) -> Caller:
    """Whose key it is. Who tries wrong ones too often has to wait. Raises: as KeyService and RateLimits do."""
    keys, limits = cast(KeyService, request.app.state.keys), cast(RateLimits, request.app.state.limits)
    address = request.client.host if request.client else ""
    try:
        return await keys.caller(request, token, afresh=afresh)
    except KnownError as error:
        if error.code == "key_invalid":
            await limits.check_failures(address)
            await limits.count_failure(address)
        raise


_JobPath = Annotated[str, Path(pattern=r"^job_[0-9a-f]{24}$", examples=["job_0123456789abcdef01234567"])]


async def _own_job(
    job_id: _JobPath,
    caller: Annotated[Caller, Depends(caller_of)],
    events: Annotated[EventService, Depends(_events)],
) -> str:
    """The id of a job that is there and the caller's. Raises: JobNotFound, also where it is another tenant's."""
    if await events.tenant(job_id) != caller.tenant:
        raise JobNotFound(job_id)
    return job_id


async def _readable_job(
    request: Request,
    job_id: _JobPath,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    events: Annotated[EventService, Depends(_events)],
    expires: Annotated[int | None, Query(ge=0, le=1 << 53, include_in_schema=False)] = None,
    tenant: Annotated[str | None, Query(max_length=64, include_in_schema=False)] = None,
    key: Annotated[str | None, Query(max_length=8, include_in_schema=False)] = None,
    signature: Annotated[str | None, Query(max_length=64, include_in_schema=False)] = None,
) -> str:
    """The id of a job whose file or figure may be read: by its tenant, or by whoever has a signed address of it.

    The query is no part of the described interface: a download_url brings it, made by nobody else.

    Raises:
        KnownError: as caller_of; ``url_invalid``, ``url_expired``; JobNotFound.
    """
    if signature is None:
        caller = await caller_of(request, credentials)
        reader = caller.tenant
    else:
        signer = cast(UrlSigner, request.app.state.signer)
        signer.check(_path_of(request), tenant or "", expires or 0, key or "", signature)
        reader = tenant or ""
    if await events.tenant(job_id) != reader:
        raise JobNotFound(job_id)
    return job_id


def _path_of(request: Request) -> str:
    """Not quoted, below whatever a proxy serves the application at."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


def _own_delivery(
    delivery_id: Annotated[str, Path(pattern=r"^msg_[0-9a-f]{24}$", examples=["msg_0123456789abcdef01234567"])],
    caller: Annotated[Caller, Depends(caller_of)],
    deliveries: Annotated[WebhookRepository, Depends(_deliveries)],
) -> str:
    """The id of a delivery that is there and the caller's. Raises: DeliveryNotFound, also where it is another's."""
    if deliveries.tenant(delivery_id) != caller.tenant:
        raise DeliveryNotFound(delivery_id)
    return delivery_id


Settings = Annotated[AppSettings, Depends(_settings)]
Jobs = Annotated[JobService, Depends(_jobs)]
Repository = Annotated[JobRepository, Depends(_repository)]
Inspecting = Annotated[Inspector, Depends(_inspector)]
Events = Annotated[EventService, Depends(_events)]
Uploads = Annotated[UploadService, Depends(_uploads)]
Artifacts = Annotated[ArtifactService, Depends(_artifacts)]
Webhooks = Annotated[WebhookService, Depends(_webhooks)]
Audit = Annotated[AuditService, Depends(_audit)]
Sessions = Annotated[SessionService, Depends(_sessions)]
Who = Annotated[Caller, Depends(caller_of)]
MayRead = Annotated[Callable[[], Awaitable[bool]], Depends(_may_read)]
JobId = Annotated[str, Depends(_own_job)]
ReadableJobId = Annotated[str, Depends(_readable_job)]
DeliveryId = Annotated[str, Depends(_own_delivery)]
