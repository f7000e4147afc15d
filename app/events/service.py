"""A job's events: pages, streams, and waiting for the next."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool
from redis.asyncio import Redis as AsyncRedis

from app.jobs.record import JobEvent
from app.jobs.repository import JobRepository, events_key

_PAGE = 500
_BLOCK_MS = 10_000  # a stream that is silent this long gets a keep-alive
T = TypeVar("T")


class EventService:
    """Reads the Redis Stream that everything showing progress reads."""

    def __init__(self, repository: JobRepository, redis: AsyncRedis) -> None:
        self._repository = repository
        self._redis = redis

    async def page(self, job_id: str, after: str, limit: int, wait_s: float) -> tuple[list[JobEvent], bool]:
        """Events after a stream id, waiting for the first; and whether the job had ended before they were read.

        Raises:
            JobNotFound
        """
        deadline = time.monotonic() + wait_s
        while True:
            ended = (await run_in_threadpool(self._repository.status, job_id)).terminal
            events = await run_in_threadpool(self._repository.events, job_id, after, limit)
            left_ms = int(1000 * (deadline - time.monotonic()))
            if events or ended or left_ms <= 0:
                return events, ended and len(events) < limit
            await self._block(job_id, after, left_ms)

    async def stream(self, job_id: str, after: str) -> AsyncIterator[JobEvent | None]:
        """Every event after a stream id until the job has ended; None where a keep-alive is due."""
        while True:
            events, ended = await self.page(job_id, after, _PAGE, _BLOCK_MS / 1000)
            for event in events:
                yield event
                after = event.id
            if ended:
                return
            if not events:
                yield None

    async def wait_for(self, job_id: str, read: Callable[[str], T], enough: Callable[[T], bool], wait_s: float) -> T:
        """``read(job_id)`` as soon as it is ``enough``, or as it is when the time is up."""
        deadline = time.monotonic() + wait_s
        while True:
            newest: Any = await self._redis.xrevrange(events_key(job_id), count=1)
            value = await run_in_threadpool(read, job_id)
            left_ms = int(1000 * (deadline - time.monotonic()))
            if enough(value) or left_ms <= 0:
                return value
            await self._block(job_id, newest[0][0] if newest else "0", left_ms)

    async def _block(self, job_id: str, after: str, milliseconds: int) -> None:
        begun = time.monotonic()
        await self._redis.xread({events_key(job_id): after}, count=1, block=min(milliseconds, _BLOCK_MS))
        await asyncio.sleep(max(0.0, 0.05 - (time.monotonic() - begun)))  # at most 20 rounds a second
