"""Many real workers on one store; only the trainer is a stub (tests/fleet)."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.jobs.placement import CPU, GPU
from app.jobs.record import JobStatus
from app.jobs.repository import JobRepository
from tests.conftest import SETTINGS
from tests.fleet.fleet import Fleet, succeeded, wait_until
from tests.fleet.stub import SECONDS
from tests.worker.conftest import own_server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    with ExitStack() as stack:

        def begin(seconds: float) -> Fleet:
            repository = stack.enter_context(own_server())
            port = repository._redis.connection_pool.connection_kwargs["port"]
            environment = {**SETTINGS, SECONDS: str(seconds), "KNOWN_ISOLATION": "off"}
            return stack.enter_context(Fleet(tmp_path, repository, f"redis://127.0.0.1:{port}/0", environment))

        yield begin


def gpu_of(folder: Path, name: str, gigabytes: int) -> dict[str, str]:
    """The environment of a worker whose driver lists one GPU, none of whose memory is used."""
    place = folder / name
    place.mkdir()
    (place / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$1" in *index*) echo "0, {name}, 0, {gigabytes * 1000}, 0";; *) echo "{name}";; esac\n'
    )
    (place / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{place}:{os.environ['PATH']}"}


def look_now(repository: JobRepository, job_id: str) -> None:
    """As half a minute later."""
    store: Any = repository._redis
    store.zadd("known:jobs:open", {job_id: 0})


@pytest.mark.slow
def test_workers_that_join_leave_and_die_lose_no_job(fleet: Callable[..., Fleet]) -> None:
    running = fleet(0.7)
    for name in ("first", "second"):
        running.join(name)
    running.wait_until_ready()
    jobs = [running.queue() for _ in range(20)]
    wait_until(lambda: running.ran("first") and running.ran("second"), "both have begun", 30)
    running.join("third")
    running.kill("first")
    running.join("fourth")
    running.wait_until_ready()
    running.leave("second")
    ended = running.wait(jobs, 120)
    assert succeeded(ended)
    assert max(job.attempts for job in ended) == 2  # that of the one that was killed
    assert running.ran("third")
    assert running.ran("fourth")
    assert running.workers["second"].wait(30) == 0
    assert set(jobs) == set.union(*map(running.ran, ("first", "second", "third", "fourth")))
    survivors = {str(running.workers[name].pid) for name in ("third", "fourth")}
    wait_until(
        lambda: {name.rpartition(":")[2] for name in running.repository.workers()} == survivors, "the dead go", 10
    )


def test_jobs_go_where_they_can_run_and_say_what_they_wait_for(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    running = fleet(0.2)
    repository = running.repository
    unserved = running.queue()
    assert repository.get(unserved).waiting_for == "a worker"
    assert (repository.wake_ups(CPU), repository.wake_ups(GPU)) == (1, 1)
    running.join("cpu")
    running.wait_until_ready()
    wait_until(lambda: repository.wake_ups(GPU) == 0, "what was sent for nothing is taken back", 5)
    anywhere, cuda, large = running.queue(), running.queue("cuda"), running.queue("cuda", 60)
    assert succeeded(running.wait([unserved, anywhere], 60))
    assert repository.get(cuda).waiting_for == "a worker with a GPU"
    wait_until(lambda: repository.wake_ups(CPU) == 0, "what was sent too much is taken", 5)
    assert repository.wake_ups(GPU) == 2
    running.join("small", **gpu_of(tmp_path, "small-gpu", 24))
    assert succeeded(running.wait([cuda], 60))
    wait_until(lambda: "the most is 25.2 GB" in (repository.get(large).waiting_for or ""), "it is said", 10)
    running.join("large", **gpu_of(tmp_path, "large-gpu", 80))
    assert succeeded(running.wait([large], 60))
    again = running.queue("cuda", 60)  # whoever takes its wake-up first: it is passed on
    begun = time.monotonic()
    assert succeeded(running.wait([again], 60))
    assert time.monotonic() - begun < 15  # not a reaper's half minute
    assert running.ran("cpu") == {unserved, anywhere}
    assert running.ran("small") == {cuda}
    assert running.ran("large") == {large, again}


def test_jobs_of_a_gpu_that_is_gone_run_on_a_cpu(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    running = fleet(0.2)
    repository = running.repository
    running.join("gpu", **gpu_of(tmp_path, "one", 24))
    running.join("cpu")
    running.wait_until_ready()
    first = running.queue()
    assert succeeded(running.wait([first], 60))
    running.kill("gpu")
    waiting = [running.queue(), running.queue("cuda")]
    wait_until(lambda: len(repository.workers()) == 1, "the dead one is forgotten", 10)
    for job_id in waiting:
        look_now(repository, job_id)
    assert succeeded(running.wait(waiting[:1], 60))
    wait_until(lambda: repository.get(waiting[1]).waiting_for == "a worker with a GPU", "it is said", 10)
    assert (running.ran("gpu"), running.ran("cpu")) == ({first}, {waiting[0]})
    assert repository.status(waiting[1]) is JobStatus.QUEUED
    for _ in range(3):  # looks of the reaper leave no pile of messages
        look_now(repository, waiting[1])
        time.sleep(0.7)
    assert repository.wake_ups(GPU) <= 2
