"""Webhooks as the API offers them."""

from typing import Any

from app.jobs.record import JobStatus
from app.jobs.secrets import Sealer
from app.keys.caller import Caller
from app.times import rfc3339
from app.webhooks.guard import Guard, shown
from app.webhooks.record import Delivery, DeliveryStatus, delivery_id
from app.webhooks.repository import DeliveryNotFound, WebhookRepository
from app.webhooks.schemas import DeliveryList, DeliveryView, SecretView, WebhookRequest
from app.webhooks.secrets import Secrets, SecretStore

_ENDS = tuple(status.value for status in JobStatus if status.terminal)


class WebhookService:
    """See the endpoints for what each method promises."""

    def __init__(self, repository: WebhookRepository, sealer: Sealer, guard: Guard) -> None:
        self._repository, self._sealer, self._guard = repository, sealer, guard
        self._secrets = SecretStore(repository, sealer)

    def accept(self, request: WebhookRequest | None) -> dict[str, Any] | None:
        """Check a request's webhook.

        Returns:
            What the job's record keeps of it; states.lua reads ``statuses`` when the job ends.

        Raises:
            KnownError: ``url_refused``.
        """
        if request is None:
            return None
        self._guard.check(request.url)
        ends = _ENDS if "completed" in request.events else request.events
        statuses = dict.fromkeys(ends, True)
        return {"url": self._sealer.seal(request.url), "shown": shown(request.url), "statuses": statuses}

    def page(
        self, caller: Caller, job_id: str | None, after: str | None, limit: int, status: DeliveryStatus | None
    ) -> DeliveryList:
        """Raises: KnownError ``delivery_not_found`` for ``after``."""
        if job_id is None:
            found, more = self._repository.page(caller.tenant, after, limit, status)
        else:
            found, more = self._of_job(caller, job_id, status), False
        data = [view(delivery) for delivery in found]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return DeliveryList(data=data, first_id=first, last_id=last, has_more=more)

    def _of_job(self, caller: Caller, job_id: str, status: DeliveryStatus | None) -> list[Delivery]:
        try:
            delivery = self._repository.get(delivery_id(job_id))
        except DeliveryNotFound:
            return []
        return [delivery] if delivery.tenant == caller.tenant and status in (None, delivery.status) else []

    def get(self, delivery_id: str) -> DeliveryView:
        return view(self._repository.get(delivery_id))

    def redeliver(self, delivery_id: str) -> DeliveryView:
        self._repository.redeliver(delivery_id)
        return self.get(delivery_id)

    def secret(self, caller: Caller) -> SecretView:
        return _secret_view(self._secrets.get(caller.tenant))

    def rotate(self, caller: Caller) -> SecretView:
        return _secret_view(self._secrets.rotate(caller.tenant))


def view(delivery: Delivery) -> DeliveryView:
    """A delivery as the API shows it."""
    return DeliveryView.model_validate(
        {
            "id": delivery.id,
            "job_id": delivery.job_id,
            "event": delivery.event,
            "url": delivery.shown_url,
            "status": delivery.status,
            "attempts": [{**vars(attempt), "at": rfc3339(attempt.at)} for attempt in delivery.attempts],
            "created_at": rfc3339(delivery.created_at),
            "next_attempt_at": rfc3339(delivery.next_attempt_at),
        }
    )


def _secret_view(secrets: Secrets) -> SecretView:
    return SecretView.model_validate(
        {
            "secret": secrets.current,
            "created_at": rfc3339(secrets.created_at),
            "previous_expires_at": rfc3339(secrets.previous_until),
        }
    )
