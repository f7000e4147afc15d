"""The hold on a job that one claim gives: how long it lasts, by this machine's own clock, and what it allows."""

import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.jobs.repository import JobRepository, LeaseLost

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_PAUSE_S = 0.2  # between two tries while the store is away


class Lease:
    """Calls to the store for one job, repeated over its outages while the lease lasts, and not a moment longer.

    The store counts it from when it heard of it; here it counts from when it was asked for, so it ends here first.
    The clock is the monotonic one: it goes on while this process is frozen, and no one can set it.

    Args:
        asked_at: ``time.monotonic()`` before the job was claimed.
    """

    def __init__(self, repository: JobRepository, job_id: str, fence: int, seconds: float, asked_at: float) -> None:
        self._repository, self._job_id, self._fence, self._seconds = repository, job_id, fence, seconds
        self._renewed_at = asked_at

    @property
    def age(self) -> float:
        """Seconds since it was last renewed."""
        return time.monotonic() - self._renewed_at

    def check(self) -> None:
        """Raises: LeaseLost when it may have run out."""
        if self.age >= self._seconds:
            raise LeaseLost(f"{self._job_id}: not renewed for {self.age:.1f} s, the lease is {self._seconds:g} s")

    def renew(self) -> None:
        """Raises: LeaseLost."""
        asked_at = time.monotonic()
        self.write(self._repository.heartbeat, self._seconds)
        self._renewed_at = asked_at

    def write(self, operation: Callable[Concatenate[str, int, P], T], *args: P.args, **options: P.kwargs) -> T:
        """``operation(job_id, fence, ...)``. Raises: LeaseLost."""
        return self._patiently(lambda: operation(self._job_id, self._fence, *args, **options))

    def read(self, operation: Callable[[str], T]) -> T:
        """``operation(job_id)``. Raises: LeaseLost."""
        return self._patiently(lambda: operation(self._job_id))

    def _patiently(self, operation: Callable[[], T]) -> T:
        while True:
            self.check()
            try:
                return operation()
            except (RedisConnectionError, RedisTimeoutError) as error:
                _log.warning("%s: no answer of the store, %.1f s of the lease gone: %s", self._job_id, self.age, error)
                time.sleep(_PAUSE_S)
