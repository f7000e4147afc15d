"""What is new, read once for all who wait for it.

states.lua publishes the id of each job that changes. The API subscribes once and, for a job that someone watches, reads
the news once, however many watch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import takewhile

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from app.events.repository import EventRepository, order
from app.jobs.record import Job, JobEvent
from app.jobs.repository import CHANGES, JobNotFound

_log = logging.getLogger(__name__)
_KEPT = 100  # events of a job; whoever is further behind reads them from the store
_PAGE = 1000
_GATHER_S = 0.02  # events that come together are given together: at most 50 rounds a second
_RETRY_S = 0.5
_LISTEN_S = 10


class Feed:
    """One job, watched: its record and its newest events."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.job: Job | None = None  # None before the first read, and once it is deleted
        self.watchers = 0
        self.reads = 0
        self.events: deque[JobEvent] = deque(maxlen=_KEPT)
        self.complete_after = "0"  # every event after this id is in ``events``
        self.lock = asyncio.Lock()
        self._changed = asyncio.Event()

    def record(self) -> Job:
        """Raises: JobNotFound."""
        if self.job is None:
            raise JobNotFound(self.job_id)
        return self.job

    def after(self, event_id: str, limit: int) -> list[JobEvent] | None:
        """Events after an id; None where not all of them are here."""
        if order(event_id) < order(self.complete_after):
            return None
        known = order(event_id)
        newer = list(takewhile(lambda event: order(event.id) > known, reversed(self.events)))  # few of those kept
        return newer[::-1][:limit]

    def add(self, events: list[JobEvent]) -> None:
        for event in events:
            if len(self.events) == _KEPT:
                self.complete_after = self.events[0].id
            self.events.append(event)

    def tell(self) -> None:
        self.reads += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def next_read(self, seen: int, timeout_s: float) -> bool:
        """Wait for a read after the one numbered ``seen``; False when the time is up."""
        if self.reads == seen:
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except TimeoutError:
                return False
            await asyncio.sleep(_GATHER_S)
        return True


class Feeds:
    """The jobs that are watched in this process."""

    def __init__(self, redis: AsyncRedis, observe_lag: Callable[[float], None]) -> None:
        self._redis = redis
        self._observe_lag = observe_lag
        self._repository = EventRepository(redis)
        self._feeds: dict[str, Feed] = {}
        self._listener: asyncio.Task[None] | None = None
        self.closing = False

    def start(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    def let_go(self) -> None:
        """Nobody is to wait any longer: this process ends."""
        self.closing = True
        for feed in self._feeds.values():
            feed.tell()

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator[Feed]:
        """A context in which a job is watched. Raises: JobNotFound."""
        feed = self._feeds.setdefault(job_id, Feed(job_id))
        feed.watchers += 1
        try:
            if not feed.reads:
                await self._begin(feed)
            feed.record()
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers and self._feeds.get(job_id) is feed:
                del self._feeds[job_id]

    async def read(self, feed: Feed) -> None:
        """Bring a feed up to date and wake whoever waits for it."""
        async with feed.lock:
            last = feed.events[-1].id if feed.events else feed.complete_after
            try:
                while True:
                    feed.job, events = await self._repository.news(feed.job_id, last, _PAGE)
                    feed.add(events)
                    if feed.reads:  # at first it reads what is old
                        for event in events:
                            self._observe_lag(max(0.0, time.time() - order(event.id)[0] / 1000))
                    if len(events) < _PAGE:
                        break
                    last = events[-1].id
            except JobNotFound:
                feed.job = None
            feed.tell()

    async def _begin(self, feed: Feed) -> None:
        async with feed.lock:
            if not feed.reads:
                newest = await self._repository.newest(feed.job_id, 1)
                feed.complete_after = newest[0].id if newest else "0"
        if not feed.reads:
            await self.read(feed)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as changes:
                    await changes.subscribe(CHANGES)
                    for feed in list(self._feeds.values()):  # what changed while nobody listened
                        await self.read(feed)
                    while True:
                        message = await changes.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                        if message and (feed_ := self._feeds.get(message["data"])):
                            await self.read(feed_)
            except RedisError as error:
                _log.warning("the job store is not heard from (%s); trying again", error)
                await asyncio.sleep(_RETRY_S)
