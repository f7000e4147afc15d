"""What deliveries are signed with: each tenant's own secret, sealed in the store."""

import base64
import os
import time
from dataclasses import dataclass
from datetime import datetime

from standardwebhooks import Webhook

from app.jobs.secrets import Sealer
from app.webhooks.repository import WebhookRepository

_BYTES = 32  # Standard Webhooks asks for 24 to 64
_OVERLAP_MS = 24 * 3600 * 1000  # how long a secret that was replaced still signs


@dataclass(frozen=True)
class Secrets:
    """Opened. ``previous`` is there while it still signs; times are ms since the epoch."""

    current: str
    created_at: int
    previous: str | None
    previous_until: int | None

    def sign(self, message_id: str, at: datetime, body: bytes) -> str:
        """The header webhook-signature: one signature for each secret.

        Args:
            at: in UTC.
        """
        secrets = [self.current, self.previous] if self.previous else [self.current]
        return " ".join(Webhook(secret).sign(message_id, at, body.decode()) for secret in secrets)


class SecretStore:
    """Tenants' secrets."""

    def __init__(self, repository: WebhookRepository, sealer: Sealer) -> None:
        self._repository, self._sealer = repository, sealer

    def get(self, tenant: str) -> Secrets:
        """A tenant's secret, made on first use. Raises: KnownError ``secret_key_invalid``."""
        sealed = self._repository.secrets(tenant, self._sealer.seal(_new_secret()), _now_ms())
        previous = self._sealer.unseal(sealed.previous) if sealed.previous else None
        return Secrets(self._sealer.unseal(sealed.current), sealed.created_at, previous, sealed.previous_until)

    def rotate(self, tenant: str) -> Secrets:
        """Make a new secret; the one before signs beside it for 24 hours."""
        now, old = _now_ms(), self.get(tenant).current
        new, before = self._sealer.seal(_new_secret()), self._sealer.seal(old)
        self._repository.rotate(tenant, before, new, now, now + _OVERLAP_MS)
        return self.get(tenant)


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(os.urandom(_BYTES)).decode()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
