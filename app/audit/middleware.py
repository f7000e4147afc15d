"""Around every request: its id, and its entry in the audit log."""

import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.audit.service import AuditService

_LOOKS = ("GET", "HEAD", "OPTIONS")
_REFUSED = (401, 403, 429)


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
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", state["request_id"].encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["method"] not in _LOOKS or status in _REFUSED:
                entry = {
                    "method": scope["method"],
                    "path": scope["path"][:500],  # without the query: it may hold a signature
                    "status": status,
                    "code": state.get("code"),
                    "client": scope["client"][0] if scope.get("client") else None,
                    "request_id": state["request_id"],
                }
                await self._audit.add(state.get("caller"), entry)
