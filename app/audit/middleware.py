"""Around every request: its id, and its entry in the audit log."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.audit.service import AuditService
from known_core.logs import about

_LOOKS = ("GET", "HEAD", "OPTIONS")
_REFUSED = (401, 403, 429)
_OBJECT = re.compile(rb"(?:job|upl)_[0-9a-f]{24}")


class RequestLog:
    """Gives each request an id (X-Request-Id) and audits those that change something or are refused."""

    def __init__(self, app: ASGIApp, audit: AuditService) -> None:
        self._app, self._audit = app, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = f"req_{secrets.token_hex(8)}"
        status, made = 500, b""

        async def send_with_id(message: Message) -> None:
            nonlocal status, made
            if message["type"] == "http.response.start":
                status = message["status"]
                made = dict(message["headers"]).get(b"location", b"")
                message["headers"] = [*message["headers"], (b"x-request-id", state["request_id"].encode())]
            await send(message)

        try:
            with about(request_id=state["request_id"]):
                await self._app(scope, receive, send_with_id)
        finally:
            if scope["method"] not in _LOOKS or status in _REFUSED:
                named = _OBJECT.search(made or scope["path"].encode())
                entry = {
                    "method": scope["method"],
                    "path": scope["path"][:500],  # without the query: it may hold a signature
                    "object": named[0].decode() if named else None,
                    "status": status,
                    "code": state.get("code"),
                    "client": scope["client"][0] if scope.get("client") else None,
                    "request_id": state["request_id"],
                }
                await self._audit.add(state.get("caller"), entry)
