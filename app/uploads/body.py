"""A request's body on its way to the disk: the next pieces arrive while the last ones are hashed and written."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from threading import Lock

from starlette.requests import ClientDisconnect

from known_core.errors import KnownError

_PIECE_BYTES = 1 << 20  # small enough for the processor's caches, so that hashing and writing read it from there
_PIECES = 8  # with the size, the memory that an upload takes; several, so that neither side waits for each hand-over


async def pour(chunks: AsyncIterator[bytes], write: Callable[[memoryview], None], idle_s: float) -> None:
    """Hand a body to ``write`` in pieces, in a thread, in order, one call at a time.

    All that arrived is written, also when the client goes away or falls silent.

    Args:
        idle_s: seconds without a byte after which the body is given up.

    Raises:
        KnownError: ``upload_stalled``, ``upload_interrupted``, and what ``write`` raises.
    """
    loop = asyncio.get_running_loop()
    writer = _Writer(write)
    ended: KnownError | None = None
    try:
        try:
            async with asyncio.timeout(idle_s) as limit:
                async for chunk in chunks:
                    rest = memoryview(chunk)
                    while rest:
                        if writer.full:
                            limit.reschedule(None)  # the disk is not the client's to answer for
                            await writer.turn_over()
                        rest = rest[writer.fill(rest) :]
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
        await writer.turn_over()
    finally:
        await writer.finish()  # whoever holds the file may close it after this
    writer.check()
    if ended:
        raise ended


class _Writer:
    """A ring of buffers: the event loop fills one while a thread writes those before it.

    A thread is taken only while there is something to write, so that silent bodies hold none.
    """

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._buffers = deque([bytearray(_PIECE_BYTES)])
        self._used = 0  # of the first buffer
        self._room = asyncio.Semaphore(_PIECES - 1)  # buffers that neither side holds
        self._waiting: deque[memoryview] = deque()
        self._lock = Lock()  # of the two below
        self._is_writing = False
        self._error: Exception | None = None
        self._writing: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return self._used == _PIECE_BYTES

    def fill(self, data: memoryview) -> int:
        """Copy what fits; returns how much it was."""
        taken = min(len(data), _PIECE_BYTES - self._used)
        self._buffers[0][self._used : self._used + taken] = data[:taken]
        self._used += taken
        return taken

    async def turn_over(self) -> None:
        """Give what is filled to the thread, and wait for an empty buffer. Raises: what ``write`` raised."""
        with self._lock:
            self._waiting.append(memoryview(self._buffers[0])[: self._used])
            start, self._is_writing = not self._is_writing, True
        if start:
            self._writing = self._loop.run_in_executor(None, self._write_all)
        await self._room.acquire()
        self.check()
        if len(self._buffers) < _PIECES:
            self._buffers.appendleft(bytearray(_PIECE_BYTES))
        else:
            self._buffers.rotate(1)  # to the one that was written longest ago
        self._used = 0

    async def finish(self) -> None:
        """Wait until nothing is written any more."""
        if self._writing:
            await asyncio.wait([self._writing])

    def check(self) -> None:
        """Raises: what ``write`` raised."""
        if self._error:
            raise self._error

    def _write_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_writing = False
                    return
                piece = self._waiting.popleft()
            try:
                if self._error is None and piece:
                    self._write(piece)
            except Exception as error:
                self._error = error
            self._loop.call_soon_threadsafe(self._room.release)
