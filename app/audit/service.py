"""Writes down who changed what, and who was refused."""

import json
import logging
from typing import Any

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from app.audit.repository import NOBODY, entry_fields, stream_of
from app.audit.schemas import AuditEntry, AuditPage
from app.keys.caller import Caller
from known_core.logs import fields, in_json

_log = logging.getLogger("known.audit")
_NOT_KEPT = "rate_limited"  # or whoever sends too much would push out what the log is for


class AuditService:
    """Args:
    kept: about so many entries of each stream; older ones go.
    """

    def __init__(self, redis: AsyncRedis, kept: int) -> None:
        self._redis = redis
        self._kept = kept

    @staticmethod
    def start() -> None:
        """Let entries appear in the process's log, a JSON object a line, also where the other lines are for people."""
        if not in_json() and not _log.handlers:
            _log.addHandler(logging.StreamHandler())
            _log.propagate = False

    async def add(self, caller: Caller | None, entry: dict[str, Any]) -> None:
        """Into the tenant's stream and the process's log.

        While the store is away into the log alone, and always so what is over a rate limit.
        """
        tenant = caller.tenant if caller else NOBODY
        entry = {**entry, "key": caller.key_id if caller else None}
        line = {"tenant": tenant or None, **entry}
        _log.info("%s", "audit" if in_json() else json.dumps(line), extra=fields(line))
        if entry.get("code") == _NOT_KEPT:
            return
        kept: Any = entry_fields(entry)
        try:
            await self._redis.xadd(stream_of(tenant), kept, maxlen=self._kept, approximate=True)
        except RedisError as error:
            _log.error("this entry is in no stream: %s", error)

    async def page(self, caller: Caller, before: str | None, limit: int) -> AuditPage:
        """The tenant's own, newest first."""
        latest: Any = await self._redis.xrevrange(
            stream_of(caller.tenant), max=f"({before}" if before else "+", count=limit
        )
        data = [AuditEntry(id=entry_id, **json.loads(fields["data"])) for entry_id, fields in latest]
        return AuditPage(data=data, last_id=data[-1].id if data else None)
