"""The route that Prometheus reads. It is not in OpenAPI: its form is Prometheus's own."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.dependencies import Settings
from app.keys.service import KeyService
from app.metrics.service import Metrics, closed

router = APIRouter()
_bearer = HTTPBearer(auto_error=False)


@router.get("/metrics", include_in_schema=False)
async def get_metrics(
    request: Request,
    settings: Settings,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Response:
    """Figures of all tenants together: a key of a tenant does not open them."""
    metrics = cast(Metrics, request.app.state.metrics)
    if not metrics.opened_by(credentials.credentials if credentials else None):
        if settings.access != "open":
            raise closed()
        await cast(KeyService, request.app.state.keys).caller(request, None)
    content, media_type = await run_in_threadpool(metrics.page, request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
