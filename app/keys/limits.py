"""How many requests a tenant may send in a while, and how often an address may try keys."""

import math
import time

from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from app.keys.caller import Caller
from app.settings import AppSettings
from known_core.errors import KnownError


class TooMany(KnownError):
    """Refused for now. ``retry_after_s`` is for the Retry-After header."""

    def __init__(self, code: str, message: str, hint: str, retry_after_s: int) -> None:
        super().__init__(code, message, hint, retryable=True)
        self.retry_after_s = retry_after_s


class RateLimits:
    """Counts in the store, so that several API processes share one limit. Sliding windows, two counters each."""

    def __init__(self, settings: AppSettings) -> None:
        storage = RedisStorage(f"async+{settings.redis_url}", implementation="redispy", key_prefix="known:limits")
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._requests = parse(settings.rate_limit) if settings.rate_limit else None
        self._failures = parse(settings.key_failure_limit)

    async def count(self, caller: Caller) -> None:
        """One request of a tenant; without keys there is nobody to share with. Raises: TooMany ``rate_limited``."""
        if self._requests is None or caller.key_id is None:
            return
        if not await self._limiter.hit(self._requests, "requests", caller.tenant):
            window = await self._limiter.get_window_stats(self._requests, "requests", caller.tenant)
            raise TooMany(
                "rate_limited",
                f"the tenant {caller.tenant} has sent more than {self._requests}",
                "Wait as long as Retry-After says; ?wait= and event streams need fewer requests than polling.",
                _seconds_until(window.reset_time),
            )

    async def check_failures(self, address: str) -> None:
        """Raises: TooMany ``rate_limited`` for an address that has tried too many wrong keys."""
        if not await self._limiter.test(self._failures, "failures", address):
            window = await self._limiter.get_window_stats(self._failures, "failures", address)
            raise TooMany(
                "rate_limited",
                f"more than {self._failures} requests with a wrong key came from {address}",
                "Wait as long as Retry-After says, then send a good key.",
                _seconds_until(window.reset_time),
            )

    async def count_failure(self, address: str) -> None:
        await self._limiter.hit(self._failures, "failures", address)


def _seconds_until(reset_time: float) -> int:
    return max(1, math.ceil(reset_time - time.time()))
