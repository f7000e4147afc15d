"""The audit log: one capped stream a tenant, and one of requests that were refused before they were anybody's."""

import json
from collections.abc import Mapping
from typing import Any

from redis import Redis

NOBODY = ""  # the tenant of requests without a good key


def stream_of(tenant: str) -> str:
    return f"known:tenant:{tenant}:audit" if tenant else "known:audit"


def entry_fields(entry: Mapping[str, Any]) -> dict[str, str]:
    """As the stream keeps an entry."""
    return {"data": json.dumps(entry)}


class AuditRepository:
    """Writes and reads, for the operator's commands.

    Args:
        kept: about so many entries of each stream; older ones go.
    """

    def __init__(self, redis: Redis, kept: int) -> None:
        self._redis: Any = redis
        self._kept = kept

    def add(self, tenant: str, entry: Mapping[str, Any]) -> None:
        self._redis.xadd(stream_of(tenant), entry_fields(entry), maxlen=self._kept, approximate=True)

    def newest(self, tenant: str, limit: int, since_ms: int = 0) -> list[tuple[str, dict[str, Any]]]:
        """Ids (milliseconds-sequence) and entries, newest first, from a time on."""
        found = self._redis.xrevrange(stream_of(tenant), min=since_ms, count=limit)
        return [(entry_id, json.loads(fields["data"])) for entry_id, fields in found]
