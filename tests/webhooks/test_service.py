"""Webhooks of a real stack: from the request to the receiver, the log, and by hand again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from app.dependencies import caller_of
from app.keys.caller import Caller, Scope
from app.main import create_app
from app.settings import AppSettings
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.conftest import SETTINGS, ended
from tests.webhooks.conftest import Bench
from tests.webhooks.receiver import Receiver, redirect

TO_LOOPBACK = {**SETTINGS, "KNOWN_WEBHOOK_ALLOW_HTTP": "1", "KNOWN_WEBHOOK_ALLOWED_HOSTS": "127.0.0.1"}
QUERY, USER = "canary_query_51f0", "canary_user_9d2c"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five states of a tiny network: the quickest job there is."""
    paths = [tmp_path_factory.mktemp("states") / f"{seed}.safetensors" for seed in range(5)]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        save_file({"layer.weight": torch.randn(40, 30, generator=generator)}, path)
    return paths


@pytest.fixture(scope="module")
def webhook_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Path]]:
    folder = tmp_path_factory.mktemp("webhooks")
    environment = {**TO_LOOPBACK, "KNOWN_WEBHOOK_SECONDS": "0.1", "KNOWN_WEBHOOK_RETRY_SCALE": "0.01"}
    with Stack(folder, port=0, environment=environment) as stack:
        yield stack, folder


@pytest.fixture
def client(webhook_stack: tuple[Stack, Path]) -> Iterator[Client]:
    with Client(webhook_stack[0].url) as connected:
        yield connected


def start(client: Client, states: list[Path], **webhook: Any) -> str:
    trajectory = [{"upload_id": client.upload(state)} for state in states]
    return str(client.enhance({"trajectory": trajectory, "webhook": webhook})["id"])


def delivery_when(client: Client, job_id: str, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The job's delivery, as soon as it is ``enough``."""
    for _ in range(600):
        found = list(client.deliveries(job_id))
        if found and enough(found[0].raw):
            return found[0].raw
        time.sleep(0.05)
    raise AssertionError(f"the delivery is still {found}")


def test_a_job_s_end_is_delivered_and_again_by_hand(
    client: Client, webhook_stack: tuple[Stack, Path], states: list[Path], receiver: Receiver
) -> None:
    server = {**os.environ, "KNOWN_SERVER": webhook_stack[0].url, "COLUMNS": "300"}

    def known(*arguments: str) -> str:
        command = [sys.executable, "-m", "known_core", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=server, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    receiver.answers = [500, redirect(301, "https://elsewhere.example/"), 204]
    flags = [part for state in states for part in ("--trajectory", str(state))]
    job = json.loads(known("enhance", *flags, "--webhook", f"{receiver.url}?token={QUERY}", "--wait", "--json"))
    job_id = job["id"]
    assert job["request"]["webhook"] == {"url": f"{receiver.url}?…"}
    receiver.wait(3)
    delivery = delivery_when(client, job_id, lambda delivery: delivery["status"] == "delivered")
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 301, 204]
    assert "redirects to https://elsewhere.example/" in delivery["attempts"][1]["error"]
    assert (delivery["event"], delivery["url"]) == ("job.succeeded", f"{receiver.url}?…")
    secret = client.webhook_secret().secret
    message = receiver.received[2].verified(secret)
    assert message["data"]["id"] == job_id
    assert message["data"]["selected"] == client.job(job_id)["result"]["selected"]
    assert client.report(job_id)["selected"] == message["data"]["selected"]
    assert message["data"]["urls"]["report"] == f"/v1/jobs/{job_id}/report"

    assert delivery["id"] in known("webhooks", "redeliver", delivery["id"])
    receiver.wait(4)
    assert receiver.received[3].body == receiver.received[2].body
    assert {got.headers["webhook-id"] for got in receiver.received} == {delivery["id"]}
    listed = known("webhooks", "deliveries", "--job", job_id)
    assert "the receiver answered 500" in listed
    assert known("webhooks", "secret").strip() == secret
    rotated = json.loads(known("webhooks", "secret", "--rotate", "--json"))
    assert rotated["secret"] != secret
    assert rotated["previous_expires_at"] > rotated["created_at"]


@pytest.mark.slow
def test_secrets_of_webhooks_are_written_nowhere(
    client: Client, webhook_stack: tuple[Stack, Path], states: list[Path], receiver: Receiver
) -> None:
    """Neither what signs, nor what the URL's query or user may hold: not in the store, a log, an event or a file."""
    job_id = start(client, states, url=f"{receiver.url}?token={QUERY}", events=["completed"])
    with pytest.raises(KnownError, match="url_refused"):
        start(client, states, url=receiver.url.replace("//", f"//{USER}:{USER}@"))
    events = json.dumps([event.data for event in client.events(job_id)])
    receiver.wait(1)
    delivery_when(client, job_id, lambda delivery: delivery["status"] == "delivered")
    secret = client.webhook_secret().secret
    receiver.received[0].verified(secret)
    said = (
        events
        + client.logs(job_id)
        + json.dumps([client.job(job_id).raw, *(delivery.raw for delivery in client.deliveries(job_id))])
    )
    written = {path: path.read_bytes() for path in webhook_stack[1].rglob("*") if path.is_file()}
    assert any(job_id.encode() in data for path, data in written.items() if "valkey" in path.parts)
    for canary in (QUERY, USER, secret.removeprefix("whsec_"), secret.removeprefix("whsec_")[:20]):
        assert canary not in said
        assert [path for path, data in written.items() if canary.encode() in data] == []


@pytest.mark.parametrize("url", [
    "https://127.0.0.2/", "http://0x7f000001/", "http://[::1]/", "http://169.254.169.254/latest", "https://nowhere.invalid/",
    "gopher://127.0.0.1/",
])  # fmt: skip
def test_a_bad_url_is_refused_before_anything_is_queued(client: Client, states: list[Path], url: str) -> None:
    before = list(client.jobs())
    trajectory = [{"upload_id": client.upload(states[0])}] * 5
    request = {"trajectory": trajectory, "webhook": {"url": url}}
    for dry_run in ("true", "false"):
        answer = client._http.post("/v1/enhance", json=request, params={"dry_run": dry_run})
        assert (answer.status_code, answer.json()["code"]) == (422, "url_refused")
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/webhook/url"]
    assert list(client.jobs()) == before


@pytest.mark.parametrize("webhook", [
    {}, {"url": "https://example.com", "events": []}, {"url": "https://example.com", "events": ["started"]},
    {"url": "https://example.com", "secret": "x"}, {"url": 3}, "https://example.com",
])  # fmt: skip
def test_other_fields_are_refused(client: Client, webhook: Any) -> None:
    with pytest.raises(KnownError, match="request_invalid"):
        client.enhance({"trajectory": [{"upload_id": "upl_" + "0" * 24}] * 5, "webhook": webhook})


@pytest.mark.slow
def test_kill_9_of_the_worker_between_the_end_and_the_delivery(
    states: list[Path], receiver: Receiver, tmp_path: Path
) -> None:
    """The first worker looks for deliveries once, before there is one; the next one finds it."""
    environment = {**TO_LOOPBACK, "KNOWN_WEBHOOK_SECONDS": "3600"}
    with Stack(tmp_path, port=0, environment=environment) as stack, Client(stack.url) as client:
        job_id = start(client, states, url=receiver.url)
        assert ended(client, job_id)["status"] == "succeeded", client.logs(job_id)
        assert next(client.deliveries(job_id)).status == "pending"
        os.kill(stack.pids()["worker"], signal.SIGKILL)
        assert receiver.received == []
        stack.add_worker("worker")
        receiver.wait(1)
        delivered = delivery_when(client, job_id, lambda delivery: delivery["status"] == "delivered")
        assert len(delivered["attempts"]) == 1
        receiver.received[0].verified(client.webhook_secret().secret)


def test_tenants_see_only_their_own(bench: Bench, receiver: Receiver) -> None:
    api = create_app(AppSettings(redis_url=bench.settings.redis_url, data_dir=bench.settings.data_dir))
    with TestClient(api) as http:

        def ask(tenant: str, method: str, path: str) -> Any:
            api.dependency_overrides[caller_of] = lambda: Caller(tenant, None, frozenset(Scope))
            return http.request(method, f"/v1/webhooks{path}")

        one = bench.end_job(receiver.url, tenant="one")
        two = bench.end_job(receiver.url, tenant="two")
        for tenant, own, other in (("one", one, two), ("two", two, one)):
            job, others_job = (bench.delivery(delivery_id).job_id for delivery_id in (own, other))
            assert [entry["id"] for entry in ask(tenant, "GET", "/deliveries").json()["data"]] == [own]
            assert len(ask(tenant, "GET", f"/deliveries?job={job}").json()["data"]) == 1
            assert ask(tenant, "GET", f"/deliveries?job={others_job}").json()["data"] == []
            assert ask(tenant, "GET", f"/deliveries?after={other}").status_code == 404
            assert ask(tenant, "GET", f"/deliveries/{own}").status_code == 200
            assert ask(tenant, "POST", f"/deliveries/{own}/redeliver").status_code == 202
            for method, path in (("GET", f"/deliveries/{other}"), ("POST", f"/deliveries/{other}/redeliver")):
                answer = ask(tenant, method, path)
                assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")
        assert ask("one", "GET", "/deliveries?status=delivered").json()["data"] == []
        assert ask("one", "GET", "/deliveries?status=pending").json()["has_more"] is False
        secrets = {tenant: ask(tenant, "GET", "/secret").json()["secret"] for tenant in ("one", "two")}
        assert secrets["one"] != secrets["two"]
        assert ask("one", "POST", "/secret/rotate").json()["secret"] not in secrets.values()
        assert ask("two", "GET", "/secret").json()["secret"] == secrets["two"]
        assert ask("two", "GET", "/secret").headers["Cache-Control"] == "no-store"
