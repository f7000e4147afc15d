"""Who may: every request is some tenant's, by its key, or by coming from this machine where no keys are asked for."""

import hashlib
import ipaddress
import logging
import re
import time
from typing import Any

from fastapi import Request
from redis.asyncio import Redis as AsyncRedis

from app.keys.caller import LOCAL, Caller, Scope
from app.keys.record import Key, parse_token
from app.keys.repository import key_name, parse_key
from app.settings import AppSettings
from known_core.errors import KnownError

_log = logging.getLogger(__name__)
_TRUSTED_S = 5.0  # a key that was good stays so for this long without asking the store: what a revocation may take
_REMEMBERED = 10_000  # keys
_USED_MS = 60_000  # how coarse last_used_at is
_PROXIED = re.compile(r"forwarded|x-forwarded-.*|x-real-ip|via")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+)(?::\d{1,5})?")  # RFC 3986, without what no browser sends
_CREATE = "Ask the operator for one: known keys create. Send it as Authorization: Bearer known_..."


class KeyService:
    """Says who a request comes from.

    Args:
        settings: ``access``: ``open`` asks for no key, and answers only this machine; ``keys`` asks every request.
    """

    def __init__(self, redis: AsyncRedis, settings: AppSettings) -> None:
        self._redis = redis
        self._open = settings.access == "open"
        self._trusted: dict[str, tuple[Caller, float]] = {}  # by the token's sha256: the caller, and until when

    def warn_when_open(self) -> None:
        """Say loudly that nobody is asked for a key."""
        if self._open:
            _log.warning(
                "OPEN: no API key is asked for. Only this machine is answered. KNOWN_ACCESS=keys changes that."
            )

    async def caller(self, request: Request, token: str | None, *, afresh: bool = False) -> Caller:
        """Whose request it is.

        Args:
            token: of the Authorization header, or the session's. One that is sent is checked, also in open mode.
            afresh: ask the store even where the key was good a moment ago: a revocation holds at once.

        Raises:
            KnownError: ``key_missing``, ``key_invalid``, ``key_expired``, ``key_revoked``, ``scope_missing``,
                ``open_mode_is_local``.
        """
        if token is not None:
            caller = await self._by_key(request, token, afresh)
        elif self._open:
            _check_local(request)
            caller = LOCAL
        else:
            raise KnownError("key_missing", "the request has no API key", _CREATE)
        request.state.caller = caller
        return caller

    async def _by_key(self, request: Request, token: str, afresh: bool) -> Caller:
        digest, now = hashlib.sha256(token.encode()).hexdigest(), time.monotonic()
        caller, until = self._trusted.get(digest, (LOCAL, 0.0))
        if now < until and not afresh:
            return caller
        self._trusted.pop(digest, None)
        key, now_ms = await self._opened(token)
        request.state.caller = key.caller  # whose log a refusal goes into
        _check_valid(key, now_ms)
        if now_ms - (key.last_used_at or 0) > _USED_MS:
            await self._redis.hset(key_name(key.id), "last_used_at", now_ms)
        if len(self._trusted) >= _REMEMBERED:
            self._trusted.clear()
        left_s = _TRUSTED_S if key.expires_at is None else min(_TRUSTED_S, (key.expires_at - now_ms) / 1000)
        self._trusted[digest] = key.caller, now + left_s
        return key.caller

    async def _opened(self, token: str) -> tuple[Key, int]:
        """The key of this text, and the store's time. Raises: KnownError ``key_invalid``, whatever is wrong with it."""
        parts = parse_token(token)
        if parts is None:
            raise _invalid()
        key_id, secret = parts
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(key_name(key_id))
            pipe.time()
            answer: list[Any] = await pipe.execute()
        fields, (seconds, micros) = answer
        if not fields or not parse_key(fields).opened_by(secret):
            raise _invalid()
        return parse_key(fields), seconds * 1000 + micros // 1000


def _invalid() -> KnownError:
    return KnownError("key_invalid", "the API key is not one of this service", _CREATE)


def _check_valid(key: Key, now_ms: int) -> None:
    if key.revoked_at is not None:
        raise KnownError("key_revoked", f"the API key {key.id} ({key.name}) was revoked", _CREATE)
    if key.expires_at is not None and key.expires_at <= now_ms:
        raise KnownError("key_expired", f"the API key {key.id} ({key.name}) has expired", _CREATE)


def require(caller: Caller, scope: Scope) -> None:
    """Raises: KnownError ``scope_missing``."""
    if scope not in caller.scopes:
        raise KnownError(
            "scope_missing",
            f"the API key {caller.key_id} has the scopes {sorted(caller.scopes)}; this needs {scope.value!r}",
            f"Use a key made with --scope {scope.value}.",
        )


def _check_local(request: Request) -> None:
    """Open mode answers this machine alone.

    No other machine, no proxy's client, and no web page of another site: neither one whose name was rebound to loopback
    (Host) nor one that sends its forms here (Origin).
    """
    client = request.client.host if request.client else "127.0.0.1"  # none: a Unix socket
    proxied = next((name for name in request.headers if _PROXIED.fullmatch(name)), None)
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if proxied:
        what = f"the request came through a proxy ({proxied})"
    elif not _is_loopback(client):
        what = f"the request came from {client}"
    elif not _names_loopback(host):
        what = f"the request is for the host {host[:80]!r}"
    elif origin is not None and not _names_loopback(origin.partition("://")[2]):
        what = f"the request was sent by a page of {origin[:80]!r}"
    else:
        return
    raise KnownError(
        "open_mode_is_local",
        f"no API keys are asked for, so only this machine is answered, and {what}",
        "Set KNOWN_ACCESS=keys, and make a key: known keys create.",
    )


def _names_loopback(host: str) -> bool:
    """Of a Host header: ``localhost``, a name below it (RFC 6761), or a loopback address; with or without a port."""
    match = _HOST.fullmatch(host)
    name = match[1].strip("[]").lower() if match else ""
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
