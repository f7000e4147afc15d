"""Valkey killed while it is written to, an API killed between its two writes, a broker restarted over and over."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.jobs.repository import connect
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.chaos.proxy import Proxy
from tests.chaos.scene import AWAY, Scene, until
from tests.conftest import SETTINGS, Inputs, ended

Begin = Callable[..., Scene]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def through(proxy: Proxy, url: str) -> dict[str, str]:
    """The environment of a process that reaches the store through a proxy."""
    return {"KNOWN_REDIS_URL": url.replace(f":{port_of(url)}/", f":{proxy.port}/")}


@pytest.mark.chaos
@pytest.mark.fault("the queue is deleted", (4,))
def test_a_job_whose_wake_up_is_lost_still_runs(scene: Begin) -> None:
    """Delete the queue while the worker is away: the reaper sends the wake-up again."""
    running = scene()
    os.kill(running.stack.pids()["worker"], signal.SIGKILL)
    job_id = running.start()
    lost = list(running.store.scan_iter("known:celery:*cpu*"))
    assert lost
    running.store.delete(*lost)
    running.store.zadd("known:jobs:open", {job_id: 0})  # as after half a minute
    running.stack.restart("worker")
    assert running.judge(job_id)["attempts"] == 1


@pytest.mark.chaos
@pytest.mark.fault("kill -9 of the API between record and wake-up", (4,))
def test_an_api_that_dies_between_its_two_writes_loses_nothing(scene: Begin) -> None:
    """A proxy sees the wake-up coming, kills the API and forwards nothing."""
    running = scene()
    request = running.inputs.request(running.client, running.stack.url)
    api = running.stack.pids()["api"]

    def tap(data: bytes) -> bool:
        if b"LPUSH" not in data:
            return True
        os.kill(api, signal.SIGKILL)
        return False

    with Proxy(port_of(running.stack.store_url), tap) as proxy:
        os.kill(api, signal.SIGKILL)
        running.stack.restart("api", through(proxy, running.stack.store_url))
        until(lambda: running.job_count() == 0, "the API is not back")
        api = running.stack.pids()["api"]
        with pytest.raises(KnownError, match="server_unreachable"):
            running.client.enhance(request)
    running.stack.restart("api")
    until(lambda: running.job_count() == 1, "the job is not there")
    job_id = next(running.client.jobs()).id
    assert running.store.llen("known:celery:cpu") == 0
    assert running.job(job_id)["status"] == "queued"
    running.store.zadd("known:jobs:open", {job_id: 0})  # as after half a minute
    assert running.judge(job_id)["attempts"] == 1


@pytest.mark.chaos
@pytest.mark.fault("kill -9 of Valkey in a loop of writes", (4, 8))
def test_what_was_acknowledged_is_there_after_kill_9_of_the_store(scene: Begin) -> None:
    running = scene()
    running.stack.stop_one("worker")  # the jobs are only to be there
    request = running.inputs.request(running.client, running.stack.url)
    acknowledged: dict[str, str] = {}
    failures: list[KnownError] = []
    stop = threading.Event()

    def write(name: str) -> None:
        with Client(running.stack.url) as client:
            for number in range(10_000):
                key = f"{name}-{number}"
                while not stop.is_set():
                    try:
                        answer = client.enhance(request, idempotency_key=key)
                    except KnownError as error:
                        if error.code not in (*AWAY, "idempotency_key_in_flight"):
                            failures.append(error)
                            return
                        time.sleep(0.05)
                        continue
                    acknowledged[key] = answer["id"]
                    break
                if stop.is_set():
                    return

    writers = [threading.Thread(target=write, args=(f"writer-{index}",)) for index in range(3)]
    for writer in writers:
        writer.start()
    for kills in range(1, 4):
        wanted = len(acknowledged) + 10
        until(lambda wanted=wanted: len(acknowledged) >= wanted, f"no writes after kill {kills - 1}")  # type: ignore[misc]
        running.kill("valkey", "")
    until(lambda: len(acknowledged) >= wanted + 10, "no writes after the last kill")
    stop.set()
    for writer in writers:
        writer.join(60)
    assert failures == []
    ids = set(acknowledged.values())
    assert len(ids) == len(acknowledged), "two keys got one job"
    for key, job_id in acknowledged.items():
        again = running.client.enhance(request, idempotency_key=key)
        assert again["id"] == job_id
    for job_id in ids:
        assert running.client.job(job_id)["status"] == "queued"
    made = running.job_count()
    assert made is not None
    assert made - len(ids) <= 3 * len(writers)  # made, and cut off from its answer: at most one a kill
    running.facts["outcome"] = f"{len(ids)} acknowledged, {len(ids)} there"


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.fault("20 times kill -9 of Valkey during 20 jobs", (3, 4, 8, 16))
def test_twenty_restarts_of_the_broker_during_twenty_jobs(scene: Begin) -> None:
    running = scene()
    jobs = [running.start() for _ in range(20)]
    for number, job_id in enumerate(jobs):
        for event in running.client.events(job_id):
            if event["type"] == "phase" and event["phase"] != "downloading":
                break
        time.sleep(0.15 * (number % 7))
        running.kill("valkey", job_id)
    attempts = [running.judge(job_id)["attempts"] for job_id in jobs]
    running.facts["outcome"] = f"20 succeeded, {sum(attempts)} attempts"


@pytest.mark.chaos
@pytest.mark.fault("Valkey away for longer than a client tries", (4, 16))
def test_an_outage_of_the_store_is_said_and_survived(tmp_path: Path, inputs: Inputs, facts: dict[str, str]) -> None:
    """Without a store nothing is accepted, and the answer says so; when it is back, all goes on."""
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        request = inputs.request(client, stack.url)
        os.kill(stack.pids()["valkey"], signal.SIGKILL)
        with pytest.raises(KnownError) as refused:
            client.enhance(request)
        assert refused.value.code == "store_unavailable"
        stack.restart("valkey")
        until(lambda: connect(stack.store_url).ping(), "the store is not back")
        assert list(client.jobs()) == []
        assert ended(client, str(client.enhance(request)["id"]))["status"] == "succeeded"
