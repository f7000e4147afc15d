"""API keys in Redis or Valkey: a hash each, and a zset of all by age."""

from collections.abc import Mapping
from typing import Any

from redis import Redis

from app.keys.caller import Scope
from app.keys.record import Key

_ALL = "known:keys"
_TIMES = ("created_at", "expires_at", "revoked_at", "last_used_at")


def key_name(key_id: str) -> str:
    """Where a key's fields are."""
    return f"known:key:{key_id}"


def parse_key(fields: Mapping[str, str]) -> Key:
    """From the fields of the Redis hash."""
    times = {name: int(fields[name]) if name in fields else None for name in _TIMES}
    scopes = frozenset(Scope(scope) for scope in fields["scopes"].split())
    return Key(fields["id"], fields["sha256"], fields["tenant"], fields["name"], scopes, **times)  # type: ignore[arg-type]


class KeyRepository:
    """The operator's side: make, list, revoke."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    def now(self) -> int:
        """The store's clock, milliseconds."""
        seconds, micros = self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    def add(self, key: Key) -> None:
        fields = {"id": key.id, "sha256": key.sha256, "tenant": key.tenant, "name": key.name}
        fields["scopes"] = " ".join(sorted(key.scopes))
        times = {name: getattr(key, name) for name in _TIMES if getattr(key, name) is not None}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key_name(key.id), mapping=fields | times)
            pipe.zadd(_ALL, {key.id: key.created_at})
            pipe.execute()

    def all(self) -> list[Key]:
        """Newest first."""
        found = [self._redis.hgetall(key_name(key_id)) for key_id in self._redis.zrevrange(_ALL, 0, -1)]
        return [parse_key(fields) for fields in found if fields]

    def get(self, key_id: str) -> Key | None:
        fields = self._redis.hgetall(key_name(key_id))
        return parse_key(fields) if fields else None

    def revoke(self, key_id: str) -> None:
        self._redis.hset(key_name(key_id), "revoked_at", self.now())
