"""Deliveries and secrets in Redis or Valkey. states.lua makes deliveries, deliveries.lua changes them."""

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from redis import Redis

from app.webhooks.record import Attempt, Delivery, DeliveryStatus, parse_delivery
from known_core.errors import KnownError

_DUE = "known:webhooks:due"
_KEPT_MS = 30 * 24 * 3600 * 1000  # as states.lua has it
_BATCH = 200  # deliveries read at once where only some of them are wanted


class DeliveryNotFound(KnownError):
    def __init__(self, delivery_id: str) -> None:
        super().__init__(
            "delivery_not_found",
            f"there is no delivery {delivery_id[:80]!r}",
            "They are kept for 30 days: GET /v1/webhooks/deliveries.",
        )


@dataclass(frozen=True)
class Claim:
    """A delivery that the caller is to make, and the fence to show when it is done."""

    delivery: Delivery
    fence: int


@dataclass(frozen=True)
class SealedSecrets:
    """A tenant's secrets as they are kept. ``previous`` still signs until then; times are ms since the epoch."""

    current: str
    created_at: int
    previous: str | None
    previous_until: int | None


class WebhookRepository:
    """The only reader and writer of deliveries and webhook secrets."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py types every answer as bytes | str | list | None
        self._script = redis.register_script(files("app.webhooks").joinpath("deliveries.lua").read_text())

    def _call(self, operation: str, *arguments: str | int) -> list[Any]:
        answer: list[Any] = self._script(keys=[_DUE], args=[operation, *arguments])
        if answer and answer[0] == "missing":
            raise DeliveryNotFound(str(arguments[0]))
        return answer

    def claim(self, lease_s: float) -> Claim | None:
        """Take a delivery that is due. One that is not reported on before the lease ends is due again."""
        answer = self._call("claim", int(lease_s * 1000))
        return Claim(self.get(answer[0]), int(answer[1])) if answer else None

    def attempted(self, claim: Claim, attempt: Attempt, status: DeliveryStatus, after_s: float = 0) -> bool:
        """Write down what became of an attempt.

        Args:
            after_s: where it is to be tried again, when.

        Returns:
            False where the lease had ended and another took the delivery: nothing was written.
        """
        line = json.dumps(asdict(attempt))
        answer = self._call("attempted", claim.delivery.id, claim.fence, line, status.value, int(after_s * 1000))
        return bool(answer[0] == "ok")

    def redeliver(self, delivery_id: str) -> None:
        """Make a delivery due now, with all its retries before it again. Raises: DeliveryNotFound."""
        self._call("redeliver", delivery_id)

    def get(self, delivery_id: str) -> Delivery:
        """Raises: DeliveryNotFound."""
        found = self._read([delivery_id])
        if not found:
            raise DeliveryNotFound(delivery_id)
        return found[0]

    def tenant(self, delivery_id: str) -> str | None:
        """Whose it is; None where there is no such delivery."""
        tenant: str | None = self._redis.hget(f"known:webhooks:{delivery_id}", "tenant")
        return tenant

    def page(
        self, tenant: str, after: str | None, limit: int, status: DeliveryStatus | None
    ) -> tuple[list[Delivery], bool]:
        """A tenant's deliveries, newest first.

        Returns:
            At most ``limit`` that come after the one called ``after``, and whether more follow.

        Raises:
            DeliveryNotFound: there is none called ``after``.
        """
        key = f"known:tenant:{tenant}:deliveries"
        seconds, _ = self._redis.time()
        self._redis.zremrangebyscore(key, 0, seconds * 1000 - _KEPT_MS)
        start = 0 if after is None else self._redis.zrevrank(key, after)
        if start is None:
            raise DeliveryNotFound(str(after))
        start += after is not None
        found: list[Delivery] = []
        while len(found) <= limit and (ids := self._redis.zrevrange(key, start, start + _BATCH - 1)):
            found += [delivery for delivery in self._read(ids) if status in (None, delivery.status)]
            start += _BATCH
        return found[:limit], len(found) > limit

    def _read(self, ids: list[str]) -> list[Delivery]:
        """Those of them that are there."""
        pipe = self._redis.pipeline(transaction=False)
        for delivery_id in ids:
            pipe.hgetall(f"known:webhooks:{delivery_id}")
            pipe.lrange(f"known:webhooks:{delivery_id}:attempts", 0, -1)
        answers = pipe.execute()
        return [
            parse_delivery(fields, tries) for fields, tries in zip(answers[::2], answers[1::2], strict=True) if fields
        ]

    def secrets(self, tenant: str, new: str, now_ms: int) -> SealedSecrets:
        """A tenant's secrets; where there are none yet, ``new`` is the first."""
        key = _secrets_key(tenant)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, "current", new)
            pipe.hsetnx(key, "created_at", now_ms)
            pipe.hgetall(key)
            fields = pipe.execute()[-1]
        until = int(fields.get("previous_until", 0))
        old = fields["previous"] if until > now_ms else None
        return SealedSecrets(fields["current"], int(fields["created_at"]), old, until if old else None)

    def rotate(self, tenant: str, old: str, new: str, now_ms: int, previous_until_ms: int) -> None:
        """Replace a tenant's secret; the old one signs beside it for a while."""
        times = {"created_at": now_ms, "previous_until": previous_until_ms}
        self._redis.hset(_secrets_key(tenant), mapping={"current": new, "previous": old, **times})


def _secrets_key(tenant: str) -> str:
    return f"known:tenant:{tenant}:webhook_secrets"
