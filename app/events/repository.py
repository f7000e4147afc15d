"""A job's events and record, read on the API's event loop."""

from typing import Any

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError

from app.events.schemas import GAP
from app.jobs.record import Job, JobEvent, parse_event, parse_job
from app.jobs.repository import JobNotFound, events_key


class EventRepository:
    """Reads what states.lua writes: the record of a job and its Redis Stream."""

    def __init__(self, redis: AsyncRedis) -> None:
        self._redis = redis

    async def job(self, job_id: str) -> Job:
        """Raises: JobNotFound."""
        fields: Any = await self._redis.hgetall(f"known:job:{job_id}")
        if not fields:
            raise JobNotFound(job_id)
        return parse_job(fields)

    async def tenant(self, job_id: str) -> str:
        """Whose job it is. Raises: JobNotFound."""
        tenant = await self._redis.hget(f"known:job:{job_id}", "tenant")
        if tenant is None:
            raise JobNotFound(job_id)
        return str(tenant)

    async def newest(self, job_id: str, limit: int) -> list[JobEvent]:
        """The last events, newest first."""
        entries: Any = await self._redis.xrevrange(events_key(job_id), count=limit)
        return [parse_event(entry_id, entry) for entry_id, entry in entries]

    async def news(self, job_id: str, after: str, limit: int) -> tuple[Job, list[JobEvent]]:
        """The record, and at most ``limit`` events after a stream id, as they were at one moment.

        Raises:
            JobNotFound
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(f"known:job:{job_id}")
            pipe.xrange(events_key(job_id), min=f"({after}", count=limit)
            fields, entries = await pipe.execute()
        if not fields:
            raise JobNotFound(job_id)
        return parse_job(fields), [parse_event(entry_id, entry) for entry_id, entry in entries]

    async def gap(self, job_id: str, after: str) -> JobEvent | None:
        """What stands for events after a stream id that are no longer kept: a long job's first ones are dropped.

        Its id is the last one before those that are there, so reading on after it misses nothing more.
        """
        try:
            info = await self._redis.xinfo_stream(events_key(job_id))
        except ResponseError:  # no such stream: the job was deleted meanwhile, and whoever reads on is told
            return None
        if not info["first-entry"]:
            return None
        dropped = int(info["entries-added"]) - int(info["length"])
        first = str(info["first-entry"][0])
        if not dropped or order(after) >= order(first) or order(after) == order(_before(first)):
            return None
        return JobEvent(_before(first), {"type": GAP, "dropped": dropped})


def order(event_id: str) -> tuple[int, int]:
    """What stream ids are compared by: milliseconds, then sequence."""
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _before(event_id: str) -> str:
    milliseconds, sequence = order(event_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-9999999999999999"
