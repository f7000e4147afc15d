"""What metrics are made of in the store: sets by state that are there anyway, counters, and what workers say of
themselves. No job is looked at, so ten thousand of them cost a scrape nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from app.jobs.placement import QUEUES, Queue, list_key
from app.jobs.record import JobStatus
from app.jobs.repository import COUNTERS, TENANTS, jobs_key


@dataclass(frozen=True)
class Snapshot:
    """The store at one moment.

    Args:
        jobs: by state. oldest_queued_s: since when the one that waits longest does; None where none does.
        counters: the hash that :data:`app.jobs.repository.COUNTERS` names.
        webhooks_due: deliveries that wait for their next attempt.
        wake_ups: messages that lie in each queue.
        workers: what each says, by name.
    """

    jobs: dict[JobStatus, int]
    oldest_queued_s: float | None
    counters: dict[str, float]
    webhooks_due: int
    wake_ups: dict[Queue, int]
    workers: dict[str, dict[str, Any]]


class MetricsRepository:
    """Reads only."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    def read(self, workers: Mapping[str, dict[str, Any]]) -> Snapshot:
        """Args: workers: :meth:`app.jobs.repository.JobRepository.worker_facts`."""
        tenants = sorted(self._redis.smembers(TENANTS))
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(COUNTERS)
        pipe.zcard("known:webhooks:due")
        for queue in QUEUES:
            pipe.llen(list_key(queue))
        for tenant in tenants:
            pipe.zrange(jobs_key(tenant, JobStatus.QUEUED), 0, 0, withscores=True)
            for status in JobStatus:
                pipe.zcard(jobs_key(tenant, status))
        (seconds, micros), counters, due, *found = pipe.execute()
        lengths, found = found[: len(QUEUES)], found[len(QUEUES) :]
        width = 1 + len(JobStatus)
        rows = [found[begin : begin + width] for begin in range(0, len(found), width)]
        first = [score for oldest, *_ in rows for _, score in oldest]
        now_ms = seconds * 1000 + micros / 1000
        return Snapshot(
            {status: sum(row[1 + place] for row in rows) for place, status in enumerate(JobStatus)},
            max(0.0, (now_ms - min(first)) / 1000) if first else None,
            {name: float(value) for name, value in counters.items()},
            due,
            dict(zip(QUEUES, lengths, strict=True)),
            dict(workers),
        )
