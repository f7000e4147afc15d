"""Bounds the body of every request but uploads, which count their own bytes as they stream them to disk."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STREAMED = "/v1/uploads"


class BodyLimit:
    """ASGI middleware: whoever reads more of a body than is allowed gets a 413 instead.

    FastAPI's ``max_body_size`` answers in plain text where Content-Length says the size; this one leaves the answer to
    the handlers of the application. It has to be the innermost: BaseHTTPMiddleware wraps what a body's reader raises.

    Args:
        max_bytes: of a body, claimed by Content-Length or counted.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_STREAMED):
            await self._app(scope, receive, send)
            return
        claimed, received = Headers(scope=scope).get("content-length", ""), 0

        async def counted() -> Message:
            nonlocal received
            if claimed.isdecimal() and int(claimed) > self._max_bytes:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than the limit of {self._max_bytes} bytes")
