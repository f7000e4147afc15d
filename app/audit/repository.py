"""The audit log: one capped stream a tenant, and one of requests that were refused before they were anybody's."""

import json
from collections.abc import Mapping
from typing import Any

from redis import Redis

_KEPT = 100_000  # entries a stream, about
NOBODY = ""  # the tenant of requests without a good key


def stream_of(tenant: str) -> str:
    return f"known:tenant:{tenant}:audit" if tenant else "known:audit"


def entry_fields(entry: Mapping[str, Any]) -> dict[str, str]:
    """As the stream keeps an entry."""
    return {"data": json.dumps(entry)}


class AuditRepository:
    """Writes and reads, for the operator's commands."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    def add(self, tenant: str, entry: Mapping[str, Any]) -> None:
        self._redis.xadd(stream_of(tenant), entry_fields(entry), maxlen=_KEPT, approximate=True)

    def newest(self, tenant: str, limit: int, before: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Ids (milliseconds-sequence) and entries, newest first; those before an id where it is given."""
        found = self._redis.xrevrange(stream_of(tenant), max=f"({before}" if before else "+", count=limit)
        return [(entry_id, json.loads(fields["data"])) for entry_id, fields in found]
