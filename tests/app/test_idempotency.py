"""A request that is sent again, with a key: one job, however many come at once."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.jobs import repository
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import Inputs, ended
from tests.worker.conftest import own_server


@pytest.fixture
def post(stack: Stack, client: Client, inputs: Inputs) -> Callable[..., httpx.Response]:
    """Sends the quick job with a key, and sections changed."""

    def send(key: str, **changes: Any) -> httpx.Response:
        body = inputs.request(client, stack.url, **changes)
        return httpx.post(f"{stack.url}/v1/enhance", json=body, headers={"Idempotency-Key": key}, timeout=60)

    return send


def test_fifty_at_once_are_one_job(post: Callable[..., httpx.Response], client: Client) -> None:
    post("warm-up", metadata={"upload": "once"})  # so that fifty threads do not upload the inputs
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: post("fifty"), range(50)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    (job_id,) = made
    for answer in answers:
        if answer.status_code == 409:
            assert (answer.json()["code"], answer.headers["Retry-After"]) == ("idempotency_key_in_flight", "5")
    again = post("fifty")
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    client.cancel(job_id)
    assert post("fifty").json()["id"] == job_id


def test_another_request_with_the_same_key(post: Callable[..., httpx.Response], client: Client) -> None:
    first = post("other")
    assert first.status_code == 202
    changed = post("other", metadata={"a": "b"})
    assert (changed.status_code, changed.json()["code"]) == (422, "idempotency_key_reused")
    client.cancel(first.json()["id"])


def test_a_key_of_a_job_that_was_deleted(post: Callable[..., httpx.Response], client: Client) -> None:
    job_id = post("gone").json()["id"]
    client.cancel(job_id)
    ended(client, job_id)
    client.delete(job_id)
    again = post("gone")
    assert (again.status_code, again.json()["code"]) == (404, "job_not_found")


def test_a_request_that_failed_frees_its_key(post: Callable[..., httpx.Response], client: Client) -> None:
    wrong = post("mended", dataset={"upload_id": "upl_" + "0" * 24})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "upload_unknown")
    mended = post("mended")
    assert mended.status_code == 202
    client.cancel(mended.json()["id"])


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_that_are_refused(post: Callable[..., httpx.Response], key: str) -> None:
    assert post(key).status_code == 422


def test_the_key_of_a_server_that_died_is_free_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "_IN_FLIGHT_S", 1)
    with own_server() as store:
        assert store.reserve("local", "a key", "body", "job_1") is None
        with store.holding_reservation("local", "a key"):
            time.sleep(2)
            assert store.reserve("local", "a key", "body", "job_2") is not None
        time.sleep(1.5)
        assert store.reserve("local", "a key", "body", "job_2") is None
