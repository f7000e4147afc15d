"""Addresses of files that need no API key, for a while: signed, so that nothing in them can be changed."""

import hmac
import time
from urllib.parse import quote, urlencode

from app.jobs.secrets import SecretKeys
from known_core.errors import KnownError
from known_core.files import canonical_json

_HINT = "GET /v1/jobs/{id}/artifacts gives a new one."


class UrlSigner:
    """HMAC-SHA256 over method, path, tenant, expiry and the key's id.

    Args:
        keys: the first signs, all are good.
        lasts_s: how long an address is good, in seconds.
    """

    def __init__(self, keys: SecretKeys, lasts_s: int) -> None:
        self._keys = keys.derived("download addresses")
        self.lasts_s = lasts_s

    def sign(self, tenant: str, path: str) -> tuple[str, int]:
        """The address for GET and HEAD of a path (not quoted), and when it expires, seconds since the epoch."""
        expires, key_id = int(time.time()) + self.lasts_s, next(iter(self._keys))
        signature = self._signature(path, tenant, expires, key_id)
        query = urlencode({"expires": expires, "tenant": tenant, "key": key_id, "signature": signature})
        return f"{quote(path)}?{query}", expires

    def check(self, path: str, tenant: str, expires: int, key_id: str, signature: str) -> None:
        """Raises: KnownError ``url_invalid``, ``url_expired``."""
        good = key_id in self._keys and hmac.compare_digest(
            signature.encode(), self._signature(path, tenant, expires, key_id).encode()
        )
        if not good:
            raise KnownError("url_invalid", "the address was not signed by this service, or was changed", _HINT)
        if expires < time.time():
            raise KnownError("url_expired", "the address has expired", _HINT)

    def _signature(self, path: str, tenant: str, expires: int, key_id: str) -> str:
        message = canonical_json(["GET", path, tenant, expires, key_id])
        return hmac.digest(self._keys[key_id], message, "sha256").hex()
