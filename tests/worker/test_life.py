"""Pause, resume, cancel and limits of real jobs, with the processes that run them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.jobs.repository import connect
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.chaos.scene import content, trainers
from tests.conftest import SETTINGS, Inputs, ended

LONG: dict[str, Any] = {"forgetting": {"epochs_per_stage": 1000, "learning_rate": 1e-6, "batch_size": 32}}


def until(client: Client, job_id: str, enough: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
    """The job once it is so; it has so many seconds."""
    deadline = time.monotonic() + seconds
    job = client.job(job_id).raw
    while not enough(job):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
        job = client.job(job_id).raw
    return job


def at_phase(client: Client, job_id: str, phase: str, detail: str = "") -> None:
    """Return as soon as the job says that it is there."""
    for event in client.events(job_id):
        if event["type"] == "phase" and event["phase"] == phase and event["detail"].startswith(detail):
            return


def statuses(client: Client, job_id: str) -> list[str]:
    return [event["status"] for event in client.events(job_id) if event["type"] == "status"]


def test_a_paused_job_frees_its_worker_and_goes_on_where_it_was(
    client: Client, stack: Stack, finished_job: str, start_job: Callable[..., str]
) -> None:
    job_id = start_job()
    at_phase(client, job_id, "forgetting", "2 of")
    assert client.pause(job_id)["status"] in ("running", "paused")
    assert client.pause(job_id)["pausing"] or client.job(job_id)["status"] == "paused"  # asking twice is asking once
    paused = until(client, job_id, lambda job: job["status"] == "paused")
    assert trainers(job_id) == []
    assert not paused["pausing"]
    assert paused["phase"] is None
    assert paused["cost"]["actual"]["seconds"] > 0
    listed = client.checkpoints(job_id)
    assert {"inputs", "evaluation-unchanged", "fan-0"} <= {stage["stage"] for stage in listed}
    assert all(stage["bytes"] > 0 for stage in listed)
    assert job_id in [job.id for job in client.jobs(status="paused")]
    work = stack.logs.parent / "jobs" / job_id / "run" / "work"
    kept = {path: path.stat().st_mtime_ns for path in work.glob("[!.]*/stage.json")}
    with pytest.raises(KnownError, match="job_busy"):
        client.delete(job_id)
    time.sleep(3 * float(SETTINGS["KNOWN_REAP_SECONDS"]))
    assert client.job(job_id).raw == paused, "nothing wakes a paused job"

    assert client.resume(job_id)["status"] in ("queued", "validating")
    job = ended(client, job_id)
    assert job["status"] == "succeeded", client.logs(job_id)
    assert job["attempts"] == 1
    assert job["cost"]["actual"]["seconds"] > paused["cost"]["actual"]["seconds"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(client, job_id) == content(client, finished_job)
    assert statuses(client, job_id) == [
        "queued", "validating", "running", "paused", "queued", "validating", "running", "succeeded"
    ]  # fmt: skip
    for ask in (client.pause, client.resume):
        with pytest.raises(KnownError, match="job_ended"):
            ask(job_id)


def test_a_job_that_waits_is_paused_at_once(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    running, waiting = start_job(**LONG), start_job()
    assert client.pause(waiting)["status"] == "paused"
    refused = httpx.post(f"{stack.url}/v1/jobs/{running}/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_paused")
    client.cancel(running)
    assert ended(client, running)["status"] == "canceled"
    time.sleep(1)  # its own wake-up comes now, and finds it paused
    assert client.job(waiting)["status"] == "paused"
    assert client.cancel(waiting)["status"] == "canceled"
    for action in ("pause", "resume"):
        refused = httpx.post(f"{stack.url}/v1/jobs/{waiting}/{action}")
        assert (refused.status_code, refused.json()["code"]) == (409, "job_ended")
        assert httpx.post(f"{stack.url}/v1/jobs/job_{'0' * 24}/{action}").status_code == 404


def test_cancel_frees_the_processor_from_a_trainer_that_ignores_term(
    client: Client, start_job: Callable[..., str]
) -> None:
    """A stopped process is deaf to TERM, whatever handlers it has."""
    job_id = start_job(**LONG)
    at_phase(client, job_id, "forgetting")
    deaf = trainers(job_id)
    for process in deaf:
        process.suspend()
    client.cancel(job_id)
    assert ended(client, job_id)["status"] == "canceled"
    assert len(deaf) == 1
    assert not deaf[0].is_running() or deaf[0].status() == psutil.STATUS_ZOMBIE
    assert trainers(job_id) == []


def test_a_job_stops_at_its_limit(client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job(**LONG, limits={"max_gpu_seconds": 4})
    job = ended(client, job_id)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "limit_reached"
    assert "limits.max_gpu_seconds, 4 s" in job["error"]["message"]
    assert job["cost"]["actual"]["seconds"] >= 4
    assert job["request"]["limits"] == {"max_gpu_seconds": 4}
    assert trainers(job_id) == []


@pytest.mark.slow
def test_the_limit_is_of_all_attempts_together(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job(**LONG, limits={"max_gpu_seconds": 3600})
    client.pause(job_id)
    until(client, job_id, lambda job: job["status"] == "paused")
    connect(stack.store_url).hset(f"known:job:{job_id}", "spent_ms", 3_600_000)
    client.resume(job_id)
    job = ended(client, job_id)
    assert job["error"]["code"] == "limit_reached"
    assert job["cost"]["actual"]["seconds"] >= 3600


@pytest.mark.slow
def test_a_worker_that_dies_while_it_is_to_pause_leaves_a_paused_job(inputs: Inputs, tmp_path: Path) -> None:
    """Frozen first, so that it sees nothing of the pause; then killed. Another worker's reaper finds the wish."""
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        at_phase(client, job_id, "forgetting")
        worker = psutil.Process(stack.pids()["worker"])
        family = [worker, *worker.children(recursive=True)]
        for process in family:
            process.suspend()
        assert client.pause(job_id)["pausing"]
        for process in family:
            process.kill()
        stack.add_worker("worker")
        job = until(client, job_id, lambda job: job["status"] == "paused")
        assert job["attempts"] == 1
        assert trainers(job_id) == []
        client.resume(job_id)
        assert ended(client, job_id)["status"] == "succeeded", client.logs(job_id)


@pytest.mark.slow
def test_a_worker_that_is_stopped_while_it_is_to_pause_leaves_a_paused_job(inputs: Inputs, tmp_path: Path) -> None:
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        at_phase(client, job_id, "forgetting")
        client.pause(job_id)
        os.kill(stack.pids()["worker"], signal.SIGTERM)
        assert until(client, job_id, lambda job: job["status"] == "paused")["attempts"] == 0


def test_what_the_service_can_do(client: Client, stack: Stack) -> None:
    said = client.capabilities()
    assert {"image-classification", "causal-lm"} <= set(said["tasks"])
    assert {"transformers", "timm"} <= set(said["libraries"])
    assert "known-v1" in said["hypermodels"]
    assert "eager" in said["engines"]
    assert said["limits"]["max_upload_bytes"] == int(SETTINGS["KNOWN_MAX_UPLOAD_BYTES"])
    [worker] = said["workers"]
    assert worker["cores"] == os.cpu_count()
    assert worker["torch"].startswith("2.")
