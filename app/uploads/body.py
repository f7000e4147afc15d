"""A request's body on its way to the disk: the next batch arrives while the last one is hashed and written."""

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect

from known_core.errors import KnownError

BATCH_BYTES = 4 << 20  # two of them are the memory that an upload takes


async def pour(chunks: AsyncIterator[bytes], write: Callable[[memoryview], None], idle_s: float) -> None:
    """Hand a body to ``write`` in batches, in a thread, in order, one call at a time.

    All that arrived is written, also when the client goes away or falls silent.

    Args:
        idle_s: seconds without a byte after which the body is given up.

    Raises:
        KnownError: ``upload_stalled``, ``upload_interrupted``, and what ``write`` raises.
    """
    loop = asyncio.get_running_loop()
    filling, spare = bytearray(BATCH_BYTES), bytearray(BATCH_BYTES)
    used = 0
    writing: asyncio.Future[None] | None = None
    ended: KnownError | None = None
    try:
        try:
            async with asyncio.timeout(idle_s) as limit:
                async for chunk in chunks:
                    rest = memoryview(chunk)
                    while rest:
                        taken = min(len(rest), BATCH_BYTES - used)
                        filling[used : used + taken] = rest[:taken]
                        used, rest = used + taken, rest[taken:]
                        if used == BATCH_BYTES:
                            limit.reschedule(None)  # the disk is not the client's to answer for
                            if writing:
                                await writing
                            writing = loop.run_in_executor(None, write, memoryview(filling))
                            filling, spare, used = spare, filling, 0
                    limit.reschedule(loop.time() + idle_s)
        except TimeoutError:
            ended = KnownError(
                "upload_stalled",
                f"no byte came for {idle_s:g} seconds",
                "Send it again; with tus, go on at the offset that HEAD gives.",
                retryable=True,
            )
        except ClientDisconnect:
            ended = KnownError("upload_interrupted", "the connection was cut", "Go on at the offset.", retryable=True)
        if writing:
            await writing
        if used:
            writing = loop.run_in_executor(None, write, memoryview(filling)[:used])
            await writing
    finally:
        if writing:
            await asyncio.wait([writing])  # whoever holds the file may close it now
    if ended:
        raise ended
