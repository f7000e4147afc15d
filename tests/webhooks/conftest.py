"""A store without a stack, jobs that end as a test says, and receivers."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobRepository, connect
from app.jobs.secrets import Sealer
from app.webhooks.guard import Guard
from app.webhooks.record import Delivery, delivery_id
from app.webhooks.repository import WebhookRepository
from app.webhooks.schemas import WebhookRequest
from app.webhooks.secrets import SecretStore
from app.webhooks.service import WebhookService
from known_core.stack import _free_port, _valkey_binary, _wait_for_port
from tests.webhooks.receiver import Receiver
from worker.courier import Courier
from worker.sender import Sender
from worker.settings import WorkerSettings

LOOPBACK = ("127.0.0.0/8",)
RESULT = {"selected": "x2", "conclusion": "x2 is better by 1.2 points"}


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("valkey"), _free_port()
    command = [_valkey_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream)
    try:
        _wait_for_port(port, server, log)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


@dataclass
class Bench:
    """The parts of a service that webhooks need; ``guard`` is the delivering side's."""

    settings: WorkerSettings
    guard: Guard = field(default_factory=lambda: Guard(True, LOOPBACK))

    def __post_init__(self) -> None:
        redis = connect(self.settings.redis_url)
        redis.flushall()
        self.jobs, self.deliveries = JobRepository(redis), WebhookRepository(redis)
        self.sealer = Sealer(self.settings)
        self.secrets = SecretStore(self.deliveries, self.sealer)

    def end_job(
        self,
        url: str,
        status: JobStatus = JobStatus.SUCCEEDED,
        tenant: str = "local",
        events: tuple[Any, ...] = ("completed",),
    ) -> str:
        """Make a job with a webhook and end it, through the script that ends jobs; returns the delivery's id."""
        accept = WebhookService(
            self.deliveries, self.sealer, Guard(True, LOOPBACK, lambda host, port: ["127.0.0.1"])
        ).accept
        webhook = accept(WebhookRequest(url=url, events=events))
        empty: dict[str, Any] = {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}}
        job_id = new_job_id()
        self.jobs.create(job_id, tenant, {**empty, "webhook": webhook})
        if status is JobStatus.CANCELED:
            self.jobs.cancel(job_id)
        else:
            fence = self.jobs.claim(job_id, "owner", 60, 3)
            assert fence is not None
            failed = {"code": "training_diverged", "message": "m", "hint": "h", "retryable": False}
            self.jobs.finish(job_id, fence, status, RESULT if status is JobStatus.SUCCEEDED else failed)
        return delivery_id(job_id)

    def courier(self, scale: float = 0.0, sender: Sender | None = None) -> Courier:
        """One that waits ``scale`` times as long as it should between attempts."""
        settings = self.settings.model_copy(update={"webhook_retry_scale": scale})
        return Courier(self.deliveries, settings, self.guard, sender)

    def delivery(self, delivery_id: str) -> Delivery:
        return self.deliveries.get(delivery_id)

    def secret(self, tenant: str = "local") -> str:
        return self.secrets.get(tenant).current


@pytest.fixture
def bench(store_url: str, tmp_path: Path) -> Bench:
    return Bench(WorkerSettings(redis_url=store_url, data_dir=tmp_path))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        yield listening
