"""How many requests a tenant may send in a while, and how often an address may try keys."""

import math
import time
from collections.abc import Mapping

from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from app.keys.caller import Caller
from app.settings import AppSettings
from known_core.errors import KnownError


class TooMany(KnownError):
    """Refused for now. ``retry_after_s`` is for the Retry-After header, ``headers`` come beside it."""

    def __init__(
        self, code: str, message: str, hint: str, retry_after_s: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code, message, hint, retryable=True)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


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
            raise await self._refusal(
                self._requests,
                ("requests", caller.tenant),
                f"the tenant {caller.tenant} has sent more than {self._requests}",
                "Wait as long as Retry-After says; ?wait= and event streams need fewer requests than polling.",
            )

    async def check_failures(self, address: str) -> None:
        """Raises: TooMany ``rate_limited`` for an address that has tried too many wrong keys."""
        if not await self._limiter.test(self._failures, "failures", address):
            raise await self._refusal(
                self._failures,
                ("failures", address),
                f"more than {self._failures} requests with a wrong key came from {address}",
                "Wait as long as Retry-After says, then send a good key.",
            )

    async def count_failure(self, address: str) -> None:
        await self._limiter.hit(self._failures, "failures", address)

    async def _refusal(self, limit: RateLimitItem, of: tuple[str, str], message: str, hint: str) -> TooMany:
        """With the header fields of draft-ietf-httpapi-ratelimit-headers-10; asked of the store only to refuse."""
        window = await self._limiter.get_window_stats(limit, *of)
        wait_s = max(1, math.ceil(window.reset_time - time.time()))
        headers = {
            "RateLimit-Policy": f'"{of[0]}";q={limit.amount};w={limit.get_expiry()}',
            "RateLimit": f'"{of[0]}";r={window.remaining};t={wait_s}',
        }
        return TooMany("rate_limited", message, hint, wait_s, headers)
