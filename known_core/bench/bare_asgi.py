"""A bare ASGI application that writes each request's body to a file: what an upload is compared with.

Nothing but the server is in its way: no framework, no hash, no size check, no lock, no thread. BENCH_FILE names
the file; with BENCH_FSYNC=1 the bytes are on the disk before the answer, as those of an upload are.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]


async def app(
    scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    """The application; run it with ``uvicorn --lifespan off``."""
    with open(os.environ["BENCH_FILE"], "wb", buffering=0) as file:  # noqa: PTH123
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
        if os.environ.get("BENCH_FSYNC") == "1":
            os.fsync(file.fileno())
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})
