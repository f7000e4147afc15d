"""Around every request: how long it took, and the bytes of uploads."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics.service import Metrics

_UPLOADS = "/v1/uploads"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMetrics:
    """Routes by their template, so that there are as many series as routes; what is no route is one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, seen = time.perf_counter(), False

        async def receive_counted() -> Message:
            message = await receive()
            self._metrics.uploaded.inc(len(message.get("body", b"")))
            return message

        async def send_timed(message: Message) -> None:
            nonlocal seen
            if message["type"] == "http.response.start":
                seen = True
                self._observe(scope, message["status"], begun)
            await send(message)

        try:
            await self._app(scope, receive_counted if scope["path"].startswith(_UPLOADS) else receive, send_timed)
        except BaseException:
            if not seen:
                self._observe(scope, 500, begun)
            raise

    def _observe(self, scope: Scope, status: int, begun: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).observe(time.perf_counter() - begun)
