"""Deaths: kill -9 of the trainer and of the worker in every phase; the job resumes and ends with the same bytes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.repository import connect
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended

PHASES = ["downloading", "evaluating_before", *(f"forgetting {stage} of 4" for stage in range(1, 5)), "nowcasting",
          "calibrating", "evaluating_after", "packaging"]  # fmt: skip


def trainers(job_id: str = "job_") -> list[psutil.Process]:
    """The running trainer processes of a job, or of any."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "worker.trainer" in line and any(job_id in part for part in line):
            found.append(process)
    return found


def _kill_in(client: Client, job_id: str, phases: list[str], kill: Callable[[], None]) -> list[str]:
    """Kill once in each phase, as soon as its event is seen; returns the phases a kill was made in."""
    left, killed = list(phases), []
    for event in client.events(job_id):
        if event["type"] == "phase" and left:
            phase = f"{event['phase']} {event['detail']}".strip()
            if phase in left:
                kill()
                killed.append(phase)
                left = left[left.index(phase) + 1 :]
    return killed


def _content(client: Client, job_id: str) -> str:
    manifest: dict[str, Any] = client._json("GET", f"/v1/jobs/{job_id}/manifest")
    return str(manifest["content_sha256"])


def test_the_same_request_gives_the_same_bytes(
    client: Client, finished_job: str, start_job: Callable[..., str]
) -> None:
    job_id = start_job()
    assert ended(client, job_id)["status"] == "succeeded"
    assert _content(client, job_id) == _content(client, finished_job)


@pytest.mark.parametrize("phases", [
    ["forgetting 2 of 4", "nowcasting", "evaluating_after"], pytest.param(PHASES, marks=pytest.mark.slow)
], ids=["some", "every"])  # fmt: skip
def test_kill_9_of_the_trainer_in_phases(
    client: Client, finished_job: str, start_job: Callable[..., str], phases: list[str]
) -> None:
    job_id = start_job()
    hits = 0

    def kill() -> None:
        nonlocal hits
        for process in trainers(job_id):
            process.kill()
            hits += 1

    assert _kill_in(client, job_id, phases, kill) == phases
    job = client.job(job_id)
    assert job["status"] == "succeeded", client.logs(job_id)
    quick = {"nowcasting", "calibrating", "packaging"}  # of this small job may be over before the kill
    assert hits >= len(set(phases) - quick)
    assert job["attempts"] >= hits  # and the last one may come when the result has been sent
    assert _content(client, job_id) == _content(client, finished_job)
    assert trainers(job_id) == []


def _worker_test(undisturbed: str, inputs: Inputs, folder: Path, phases: list[str]) -> None:
    """Kill the worker (and what it supervises must die with it) in each phase, start it again each time.

    Args:
        undisturbed: the content of a job with the same request that nobody disturbed.
    """
    with Stack(folder, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])

        def kill() -> None:
            os.kill(stack.pids()["worker"], signal.SIGKILL)
            deadline = time.monotonic() + 10
            while trainers(job_id) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert trainers(job_id) == [], "the trainer outlived its worker"
            stack.add_worker("worker")

        assert _kill_in(client, job_id, phases, kill) == phases
        job = client.job(job_id)
        assert job["status"] == "succeeded", client.logs(job_id)
        assert _content(client, job_id) == undisturbed


def test_kill_9_of_the_worker(client: Client, finished_job: str, inputs: Inputs, tmp_path: Path) -> None:
    _worker_test(_content(client, finished_job), inputs, tmp_path, ["forgetting 3 of 4"])


@pytest.mark.slow
def test_kill_9_of_the_worker_in_every_phase(client: Client, finished_job: str, inputs: Inputs, tmp_path: Path) -> None:
    _worker_test(_content(client, finished_job), inputs, tmp_path, PHASES)


def test_a_stopped_worker_gives_its_job_back_and_another_goes_on(inputs: Inputs, tmp_path: Path) -> None:
    """SIGTERM, as a deploy sends it, in the middle of a stage; also of the whole stack."""
    request: dict[str, Any] = {"forgetting": {"epochs_per_stage": 15, "learning_rate": 1e-5, "batch_size": 32}}
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url, **request))["id"])
        for event in client.events(job_id):
            if event["type"] == "progress" and event["phase"] == "forgetting":
                break
    assert trainers(job_id) == []
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        assert client.job(job_id)["status"] in ("queued", "validating", "running")
        job = ended(client, job_id)
        assert job["status"] == "succeeded", client.logs(job_id)
        statuses = [event["status"] for event in client.events(job_id) if event["type"] == "status"]
        assert statuses == ["queued", "validating", "running", "queued", "validating", "running", "succeeded"]
        assert job["attempts"] == 1  # being stopped is not dying


def test_a_job_that_keeps_dying_fails(inputs: Inputs, tmp_path: Path) -> None:
    with Stack(tmp_path, port=0, environment={**SETTINGS, "KNOWN_MAX_ATTEMPTS": "2"}) as stack:
        with Client(stack.url) as client:
            job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
            deadline = time.monotonic() + 60
            while not client.job(job_id)["finished_at"] and time.monotonic() < deadline:
                for process in trainers(job_id):
                    process.kill()
                time.sleep(0.1)
            job = client.job(job_id)
        assert job["status"] == "failed"
        assert job["error"]["code"] == "worker_died"
        assert job["attempts"] == 2


def test_an_owner_frozen_past_its_lease_writes_nothing_more(inputs: Inputs, tmp_path: Path) -> None:
    """SIGSTOP the whole worker past its lease while another takes the job; then let it go on."""
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        for event in client.events(job_id):
            if event.get("phase") == "evaluating_before":
                break
        frozen = psutil.Process(stack.pids()["worker"])
        family = [frozen, *frozen.children(recursive=True)]
        for process in family:
            process.suspend()
        stack.add_worker("second worker")
        assert ended(client, job_id)["status"] == "succeeded"
        finished = client.job(job_id)
        events = list(client.events(job_id))
        for process in family:
            process.resume()
        time.sleep(2)
        assert client.job(job_id) == finished
        assert list(client.events(job_id)) == events
        assert trainers(job_id) == [], "the frozen trainer was not stopped"


def test_a_job_whose_wake_up_is_lost_still_runs(inputs: Inputs, tmp_path: Path) -> None:
    """Delete the queue while the worker is away: the reaper sends the wake-up again."""
    with Stack(tmp_path, port=0, environment=SETTINGS) as stack, Client(stack.url) as client:
        os.kill(stack.pids()["worker"], signal.SIGKILL)
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        store = connect(stack.store_url)
        lost = list(store.scan_iter("known:celery:*known-jobs*"))
        assert lost
        store.delete(*lost)
        store.zadd("known:jobs:open", {job_id: 0})  # as after half a minute
        stack.add_worker("worker")
        assert ended(client, job_id)["status"] == "succeeded"
