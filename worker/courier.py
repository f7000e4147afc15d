"""Delivers webhooks: a job's end is told until the receiver has taken it."""

import logging
import random
import time
from datetime import UTC, datetime
from threading import Event, Thread

import httpx

from app.jobs.secrets import Sealer
from app.webhooks.guard import Destination, Guard
from app.webhooks.record import Attempt, Delivery, DeliveryStatus
from app.webhooks.repository import Claim, WebhookRepository
from app.webhooks.secrets import SecretStore
from known_core.errors import KnownError
from worker.sender import Answer, Sender
from worker.settings import WorkerSettings

_log = logging.getLogger(__name__)
WAITS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)  # as Standard Webhooks recommends
_JITTER = 0.1  # of a wait, at most: receivers that were down are not met by everyone at once
_THREADS = 4  # so that a slow receiver does not hold up the others
_LEASE_S = 60.0  # more than an attempt takes
_GONE = 410  # the receiver wants no more


class Courier:
    """Threads that deliver what is due. Every worker has some; each delivery is taken by one.

    Deliveries are made at least once: a worker that dies while it sends leaves its delivery to another.

    Args:
        guard: says where a delivery may go, at the time it is made.
    """

    def __init__(
        self,
        repository: WebhookRepository,
        settings: WorkerSettings,
        guard: Guard | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._repository = repository
        self._every_s, self._scale = settings.webhook_seconds, settings.webhook_retry_scale
        self._sealer = Sealer(settings)
        self._secrets = SecretStore(repository, self._sealer)
        self._guard = guard or Guard.of(settings)
        self._sender = sender or Sender(httpx.create_ssl_context())
        self._stop = Event()
        self._threads = [Thread(target=self._run, name=f"courier-{n}", daemon=True) for n in range(_THREADS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> int:
        """Deliver what is due; returns how many attempts were made."""
        count = 0
        while not self._stop.is_set() and (claim := self._repository.claim(_LEASE_S)):
            self._attempt(claim)
            count += 1
        return count

    def _attempt(self, claim: Claim) -> None:
        delivery = claim.delivery
        at, begin = time.time_ns() // 1_000_000, time.monotonic()
        answer = self._answer(delivery)
        attempt = Attempt(at, answer.status, answer.error, round((time.monotonic() - begin) * 1000))
        status, after_s = self._verdict(delivery, answer)
        if not self._repository.attempted(claim, attempt, status, after_s):
            _log.warning("%s took longer than its lease; another worker has it", delivery.id)
        elif answer.error:
            _log.info("%s (%s) to %s: %s", delivery.id, delivery.event, delivery.shown_url, answer.error)

    def _answer(self, delivery: Delivery) -> Answer:
        try:
            to = self._guard.check(self._sealer.unseal(delivery.sealed_url))
            return self._send(delivery, to)
        except KnownError as error:
            return Answer(None, f"{error.message} ({error.code})")

    def _send(self, delivery: Delivery, to: Destination) -> Answer:
        at, body = datetime.now(UTC), delivery.body()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "User-Agent": "known-webhooks/1",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self._secrets.get(delivery.tenant).sign(delivery.id, at, body),
        }
        return self._sender.post(to, headers, body)

    def _verdict(self, delivery: Delivery, answer: Answer) -> tuple[DeliveryStatus, float]:
        """The delivery's state from now on, and where it is tried again, after how many seconds."""
        if answer.error is None:
            return DeliveryStatus.DELIVERED, 0
        if answer.status == _GONE or delivery.tries >= len(WAITS_S):
            return DeliveryStatus.FAILED, 0
        jitter = 1 + random.random() * _JITTER  # noqa: S311
        return DeliveryStatus.PENDING, WAITS_S[delivery.tries] * jitter * self._scale

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # the thread must outlive any outage of the store
                _log.exception("the courier could not look; it will again")
            self._stop.wait(self._every_s)
