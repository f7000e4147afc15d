"""A job's events: pages, streams, and waiting for the next."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from redis.asyncio import Redis as AsyncRedis

from app.events.feeds import Feed, Feeds
from app.events.repository import EventRepository
from app.jobs.record import Job, JobEvent

_PAGE = 500
_SILENCE_S = 10.0  # a stream that is silent this long gets a keep-alive
_ALLOWED_S = 5.0  # between two looks at whether a stream's reader may still read


class EventService:
    """Reads the Redis Stream that everything showing progress reads.

    Args:
        observe_lag: told the seconds from when an event was written until it was read for who watches.
    """

    def __init__(self, redis: AsyncRedis, observe_lag: Callable[[float], None] = lambda seconds: None) -> None:
        self._repository = EventRepository(redis)
        self._feeds = Feeds(redis, observe_lag)

    def start(self) -> None:
        self._feeds.start()

    def let_go(self) -> None:
        """This process ends: answer whoever waits with what there is, and end the streams. Clients ask the next one."""
        self._feeds.let_go()

    async def stop(self) -> None:
        await self._feeds.stop()

    async def tenant(self, job_id: str) -> str:
        """Whose job it is. Raises: JobNotFound."""
        return await self._repository.tenant(job_id)

    async def newest(self, job_id: str, limit: int) -> list[JobEvent]:
        """The last events, newest first."""
        return await self._repository.newest(job_id, limit)

    async def page(self, job_id: str, after: str, limit: int, wait_s: float) -> tuple[list[JobEvent], bool]:
        """Events after a stream id, waiting for the first; and whether the job has ended and none follows these.

        Raises:
            JobNotFound
        """
        deadline = time.monotonic() + wait_s
        if wait_s <= 0:
            return await self._look_up(job_id, after, limit)
        async with self._feeds.watch(job_id) as feed:
            while True:
                read = feed.reads
                events, ended = await self._read(feed, after, limit)
                if events or ended or not await self._next(feed, read, deadline):
                    return events, ended

    async def stream(
        self, job_id: str, after: str, may_read: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[JobEvent | None]:
        """Every event after a stream id until the job, or this process, has ended; None where a keep-alive is due.

        Args:
            may_read: asked again while the stream is open, which ends where it no longer holds.

        Raises:
            JobNotFound: also when it is deleted meanwhile.
        """
        ask_at = time.monotonic() + _ALLOWED_S
        async with self._feeds.watch(job_id) as feed:
            while True:
                if time.monotonic() >= ask_at:
                    if not await may_read():
                        return
                    ask_at = time.monotonic() + _ALLOWED_S
                read = feed.reads
                events, ended = await self._read(feed, after, _PAGE)
                for event in events:
                    yield event
                    after = event.id
                if ended or self._feeds.closing:
                    return
                if not events and not await self._next(feed, read, time.monotonic() + _SILENCE_S):
                    yield None

    async def wait_for(self, job_id: str, enough: Callable[[Job], bool], wait_s: float) -> Job:
        """The job as soon as it is ``enough``, or as it is when the time is up. Raises: JobNotFound."""
        if wait_s <= 0:
            return await self._repository.job(job_id)
        deadline = time.monotonic() + wait_s
        async with self._feeds.watch(job_id) as feed:
            while True:
                read, job = feed.reads, feed.record()
                if enough(job) or not await self._next(feed, read, deadline):
                    return job

    async def _read(self, feed: Feed, after: str, limit: int) -> tuple[list[JobEvent], bool]:
        job, events = feed.record(), feed.after(after, limit)
        if events is None:
            return await self._look_up(feed.job_id, after, limit)
        return events, job.status.terminal and len(events) < limit

    async def _look_up(self, job_id: str, after: str, limit: int) -> tuple[list[JobEvent], bool]:
        job, events = await self._repository.news(job_id, after, limit)
        if gap := await self._repository.gap(job_id, after):
            events = [gap, *events][:limit]
        return events, job.status.terminal and len(events) < limit

    async def _next(self, feed: Feed, read: int, deadline: float) -> bool:
        """Whether something may be new before the deadline; after a long silence that is looked up, not waited for."""
        left = deadline - time.monotonic()
        if left <= 0 or self._feeds.closing:
            return False
        if not await feed.next_read(read, min(left, _SILENCE_S)):
            await self._feeds.read(feed)
            return deadline - time.monotonic() > 0
        return True
