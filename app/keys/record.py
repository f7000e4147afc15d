"""An API key: how it is made, and what is kept of it."""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass

from app.keys.caller import Caller, Scope
from known_core.errors import KnownError

_FORM = re.compile(r"(known_([0-9a-f]{12})_([0-9A-Za-z_-]{43}))([0-9a-f]{8})")  # id, secret, crc32 of what is before
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True)
class Key:
    """What the store keeps. Times are milliseconds since the epoch, on the store's clock.

    The secret is 256 random bits, so its plain sha256 cannot be turned back or guessed; a slow hash would add nothing.
    """

    id: str
    sha256: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None

    def opened_by(self, secret: str) -> bool:
        """Whether this is the key's secret, in constant time."""
        return hmac.compare_digest(self.sha256, _sha256(secret))

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant, self.id, self.scopes)


def new_key(tenant: str, name: str, scopes: frozenset[Scope], now: int, lasts_ms: int | None) -> tuple[Key, str]:
    """A key, and the text to give to its owner: nobody can read it again.

    Raises:
        KnownError: ``tenant_invalid``.
    """
    if not _TENANT.fullmatch(tenant):
        raise KnownError(
            "tenant_invalid",
            f"the tenant is {tenant[:80]!r}",
            "Use 1 to 64 lower-case letters, digits and hyphens, such as team-a.",
        )
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    expires_at = None if lasts_ms is None else now + lasts_ms
    text = f"known_{key_id}_{secret}"
    return Key(key_id, _sha256(secret), tenant, name, scopes, now, expires_at), text + _checksum(text)


def parse_token(token: str) -> tuple[str, str] | None:
    """The id and the secret in a key's text; None where it is not a key's, or was mistyped: the store is not asked."""
    match = _FORM.fullmatch(token)
    return (match[2], match[3]) if match and match[4] == _checksum(match[1]) else None


def _checksum(text: str) -> str:
    """Not a secret's: it tells typing errors, and a key from text that looks like one (secret scanners)."""
    return f"{zlib.crc32(text.encode()):08x}"


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
