"""A browser's session: a cookie that stands for an API key, good on our own pages alone."""

import hashlib
import secrets
from typing import Any

from fastapi import Request, Response
from redis.asyncio import Redis as AsyncRedis

from app.jobs.secrets import Sealer
from known_core.errors import KnownError

_READS = ("GET", "HEAD", "OPTIONS")


class SessionService:
    """Sessions in the store, each the sealed API key it stands for. The store drops those that are over.

    Args:
        seconds: how long one lasts.
    """

    def __init__(self, redis: AsyncRedis, sealer: Sealer, seconds: int) -> None:
        self._redis, self._sealer, self._seconds = redis, sealer, seconds

    async def begin(self, request: Request, response: Response, token: str) -> None:
        """Give the browser a session for a key that is good; one that it had is over.

        The cookie comes back from this site's pages alone (SameSite), is out of reach of scripts (HttpOnly), and where
        the request came over https it never goes over http (Secure).
        """
        await self._forget(request)
        session = secrets.token_urlsafe(32)
        await self._redis.set(_place(session), self._sealer.seal(token), ex=self._seconds)
        secure = request.url.scheme == "https"
        response.set_cookie(
            _cookie_name(request), session, max_age=self._seconds, httponly=True, secure=secure, samesite="strict"
        )

    async def token(self, request: Request) -> str | None:
        """The API key of a request's session; None where it has none, or comes from another site and only reads.

        Raises:
            KnownError: ``session_ended``, ``cross_site_request``.
        """
        session = request.cookies.get(_cookie_name(request))
        if session is None or (not is_from_here(request) and request.method in _READS):
            return None
        check_from_here(request)
        sealed: Any = await self._redis.get(_place(session))
        try:
            return self._sealer.unseal(sealed or "")
        except KnownError as error:  # none is there, or it was sealed with a key that is gone
            raise KnownError("session_ended", "this browser's session is over", "Log in again.") from error

    async def end(self, request: Request, response: Response) -> None:
        """Log out: the session is over, also for whoever has copied its cookie."""
        await self._forget(request)
        response.delete_cookie(_cookie_name(request), httponly=True, secure=request.url.scheme == "https")

    async def _forget(self, request: Request) -> None:
        if session := request.cookies.get(_cookie_name(request)):
            await self._redis.delete(_place(session))


def check_from_here(request: Request) -> None:
    """Raises: KnownError ``cross_site_request`` where a browser says that a page of another site sent it."""
    if not is_from_here(request):
        origin = request.headers.get("origin") or request.headers.get("sec-fetch-site") or "unknown"
        raise KnownError(
            "cross_site_request",
            f"the request was sent by a page of another site ({origin[:80]!r})",
            "Do it on this service's own pages, or with an API key in the Authorization header.",
        )


def is_from_here(request: Request) -> bool:
    """Whether a browser's request comes from this site's own pages, or reads what its user typed or clicked open.

    Fetch metadata says it, where the browser sends it (https and localhost), and Origin. A request that changes
    something and has neither is not from here.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        return False
    reads = request.method in _READS
    if site is None:
        return origin is not None or reads
    return site == "same-origin" or (site == "none" and reads)


def _cookie_name(request: Request) -> str:
    """With the prefix that lets no subdomain and no http page set it, where that is possible."""
    return "__Host-known" if request.url.scheme == "https" else "known"


def _place(session: str) -> str:
    """Hashed: whoever reads the store cannot be anybody."""
    return f"known:session:{hashlib.sha256(session.encode()).hexdigest()}"
