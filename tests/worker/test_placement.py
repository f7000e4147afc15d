"""Which worker takes which job: by device, by memory, and what is said where none can."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from pydantic import ValidationError

from app.jobs.placement import CONTROL, CPU, GPU, Capacity, Device, Needs, Placement, place
from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobRepository, connect
from known_core.files import write_json
from tests.worker.conftest import own_server
from worker.machine import describe_load
from worker.settings import WorkerSettings

GB = 10**9
CPU_WORKER = Capacity((CPU, CONTROL))
SMALL, LARGE = (Capacity((GPU, CONTROL), size * GB, size * GB) for size in (24, 80))


@pytest.fixture
def repository() -> Iterator[JobRepository]:
    with own_server() as one:
        yield one


def queue_one(repository: JobRepository, device: Device = "auto", gigabytes: int = 0, tenant: str = "local") -> str:
    job_id = new_job_id()
    needs = asdict(Needs(device, gigabytes * GB))
    fields = {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}, "needs": needs}
    repository.create(job_id, tenant, fields)
    time.sleep(0.002)  # created in another millisecond
    return job_id


def join(repository: JobRepository, name: str, worker: Capacity) -> None:
    gpus = [{"total": worker.gpu_memory_bytes, "used": 0}] if GPU in worker.queues else []
    repository.worker_alive(name, 60, {"queues": worker.queues, "load": {"gpus": gpus}})


@pytest.mark.parametrize(
    ("device", "gigabytes", "living", "queues", "waiting_for"),
    [
        ("auto", 0, [CPU_WORKER], (CPU,), None),
        ("auto", 0, [CPU_WORKER, SMALL], (GPU,), None),
        ("auto", 60, [CPU_WORKER, SMALL, LARGE], (GPU,), None),
        ("auto", 60, [CPU_WORKER, SMALL], (CPU,), None),
        ("auto", 60, [SMALL], (GPU,), "a worker with 60.0 GB of GPU memory; the most is 24.0 GB"),
        ("auto", 0, [], (GPU, CPU), "a worker"),
        ("cuda", 0, [CPU_WORKER], (GPU,), "a worker with a GPU"),
        ("cuda", 60, [SMALL, CPU_WORKER], (GPU,), "a worker with 60.0 GB of GPU memory; the most is 24.0 GB"),
        ("cuda", 60, [Capacity.of({"queues": [GPU]})], (GPU,), None),
        ("cpu", 0, [CPU_WORKER, LARGE], (CPU,), None),
        ("cpu", 0, [LARGE], (CPU,), "a worker that serves the queue cpu"),
    ],
)
def test_where_a_job_waits_and_for_what(
    device: Device, gigabytes: int, living: list[Capacity], queues: tuple[str, ...], waiting_for: str | None
) -> None:
    assert place(Needs(device, gigabytes * GB), living) == Placement(queues, waiting_for)  # type: ignore[arg-type]


def test_a_worker_offers_all_gpus_over_which_it_spreads_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [{"total": 24 * GB, "used": GB}, {"total": 24 * GB, "used": 0}]
    facts = {"queues": [GPU], "load": {"gpus": gpus}}
    one, two, all_of_them = (Capacity.of({**facts, "gpus_of_a_network": spread}) for spread in (1, 2, 8))
    assert (one.gpu_memory_bytes, one.gpu_free_bytes) == (24 * GB, 23 * GB)
    assert (two.gpu_memory_bytes, two.gpu_free_bytes) == (48 * GB, 47 * GB)
    assert all_of_them == two
    assert Capacity.of(facts) == one
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert WorkerSettings(team_size=0).gpus_of_a_network(2) == 2
    assert WorkerSettings(team_size=1).gpus_of_a_network(2) == 1
    assert WorkerSettings(team_sharding="ddp").gpus_of_a_network(2) == 1
    monkeypatch.setattr("os.geteuid", lambda: 10_001)  # as in the image
    assert WorkerSettings().gpus_of_a_network(2) == 1
    assert WorkerSettings(isolation="off").gpus_of_a_network(2) == 2


def test_needs_are_what_the_estimate_expects() -> None:
    estimate = {"gpu_memory_bytes": {"low": 1, "expected": 2, "high": 3}}
    assert Needs.of("auto", estimate) == Needs("auto", 2)
    assert Needs.of("cuda", {"gpu_memory_bytes": None}) == Needs.of("cuda", None) == Needs("cuda", 0)


def test_a_worker_takes_the_oldest_job_that_it_can(repository: JobRepository) -> None:
    for name, worker in (("cpu", CPU_WORKER), ("small", SMALL), ("large", LARGE)):
        join(repository, name, worker)
    huge, large, plain = (queue_one(repository, gigabytes=size) for size in (200, 60, 0))
    cpu = queue_one(repository, "cpu")
    assert repository.next(LARGE, 0).job_id == large
    assert repository.next(SMALL, 0).job_id == plain
    assert repository.next(CPU_WORKER, 0).job_id == huge  # no GPU is large enough: it is for a CPU
    repository.cancel(huge)
    assert repository.next(CPU_WORKER, 0).job_id == cpu
    repository.cancel(cpu)
    assert (answer := repository.next(CPU_WORKER, 0)).job_id is None
    assert answer.passed_over == large
    repository.worker_left("small")
    assert repository.next(CPU_WORKER, 0).job_id is None
    repository.worker_left("large")
    assert repository.next(CPU_WORKER, 0).job_id == large  # with no GPU left it is for a CPU


def test_behind_many_that_only_another_can_take(repository: JobRepository) -> None:
    for _ in range(120):  # more than two pages
        queue_one(repository, "cuda")
    mine = queue_one(repository, "cpu")
    assert repository.next(CPU_WORKER, 0).job_id == mine


def test_a_job_whose_worker_died_is_only_for_one_that_can_take_it(repository: JobRepository) -> None:
    job_id = queue_one(repository, "cuda", 60)
    assert repository.claim(job_id, "owner", 0.001, 3) is not None
    time.sleep(0.01)
    assert repository.next(SMALL, 0, job_id).job_id is None
    assert repository.next(SMALL, 0, job_id).passed_over == job_id
    assert repository.next(LARGE, 0, job_id).job_id == job_id
    repository.wait_for(job_id, "a worker with a GPU")  # it is said although it is not queued
    assert repository.get(job_id).waiting_for == "a worker with a GPU"
    repository.cancel(job_id)
    assert repository.next(CPU_WORKER, 0, job_id).job_id == job_id  # anybody can end it


def test_a_large_job_is_not_starved_by_small_ones(repository: JobRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else uses its GPU: small jobs fit beside that, and after a while the GPU is kept for the large one."""
    shared = Capacity((GPU, CONTROL), 80 * GB, 40 * GB)
    join(repository, "shared", shared)
    large, small = queue_one(repository, "cuda", 60), queue_one(repository, "cuda", 10)
    assert repository.next(shared, 0).job_id == small
    monkeypatch.setattr("app.jobs.repository.PATIENCE_MS", 0)
    time.sleep(0.002)
    assert repository.next(shared, 0).job_id is None
    assert repository.next(LARGE, 0).job_id == large
    assert repository.next(SMALL, 0).job_id == small  # a GPU that can never hold it is kept for nobody


def test_what_a_job_waits_for_is_said_once_and_taken_back(repository: JobRepository) -> None:
    job_id = queue_one(repository, "cuda")
    for _ in range(3):
        repository.wait_for(job_id, "a worker with a GPU")
    assert repository.get(job_id).waiting_for == "a worker with a GPU"
    repository.wait_for(job_id, None)
    assert repository.get(job_id).waiting_for is None
    repository.wait_for(job_id, "a worker")
    assert repository.claim(job_id, "owner", 60, 3) is not None
    assert repository.get(job_id).waiting_for is None
    repository.wait_for(job_id, "a worker")  # somebody has it
    assert repository.get(job_id).waiting_for is None
    said = [event.data["waiting_for"] for event in repository.events(job_id, "0", 100)
            if event.data["type"] == "waiting"]  # fmt: skip
    assert said == ["a worker with a GPU", "", "a worker"]


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_run_at_once_than_may_however_many_claim(repository: JobRepository, limit: int) -> None:
    jobs = [queue_one(repository) for _ in range(8)]
    url = repository._redis.connection_pool.connection_kwargs
    together, fences = Barrier(len(jobs)), list[int | None]()

    def claim(job_id: str) -> None:
        own = JobRepository(connect(f"redis://{url['host']}:{url['port']}/0"))
        together.wait()
        fences.append(own.claim(job_id, "owner", 60, 3, limit))

    threads = [Thread(target=claim, args=(job_id,)) for job_id in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(fence is not None for fence in fences) == limit
    assert sum(repository.status(job_id) is JobStatus.VALIDATING for job_id in jobs) == limit


def test_workers_that_left_or_fell_silent_are_forgotten(repository: JobRepository) -> None:
    for name, seconds in (("here:1", 60), ("here:2", 60), ("silent:1", 1)):
        repository.worker_alive(name, seconds, {"queues": [CPU, CONTROL]})
    assert repository.workers() == ["here:1", "here:2", "silent:1"]
    repository.worker_left("here:2")
    time.sleep(1.05)
    assert repository.workers() == ["here:1"]
    assert repository.capacities() == [CPU_WORKER]


@pytest.mark.parametrize("given", ["gpu", "gpu,cpu,control", "control,disk", "cpu,gpu"])
def test_queues_that_make_no_sense_are_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="KNOWN_QUEUES is"):
        WorkerSettings(queues=given)


def test_queues_are_those_of_the_machine_unless_they_are_named() -> None:
    assert WorkerSettings().served(has_gpu=True) == (GPU, CONTROL)
    assert WorkerSettings().served(has_gpu=False) == (CPU, CONTROL)
    assert WorkerSettings(queues="control, cpu").served(has_gpu=True) == (CPU, CONTROL)
    assert WorkerSettings(queues="control").served(has_gpu=True) == (CONTROL,)


def test_a_worker_sees_the_gpus_that_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the driver's place says what it was asked."""
    driver, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
    driver.write_text(f"#!/bin/sh\necho \"$@\" > {asked}\necho '1, NVIDIA L4, 1024, 23034, 0'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    capacity = Capacity.of(json.loads(json.dumps({"queues": [GPU, CONTROL], "load": describe_load()})))
    assert capacity == Capacity((GPU, CONTROL), 23034 << 20, 22010 << 20)
    assert "--id=1" in asked.read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert describe_load()["gpus"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU that PyTorch can use")
def test_a_gpu_that_pytorch_cannot_use_is_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    write_json(tmp_path / "spec.json", {})
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "worker.trainer", str(tmp_path), str(write_end), "cuda", "1", "auto"]
    ran = subprocess.run(command, pass_fds=[write_end], check=False, cwd=Path(__file__).parents[2])
    os.close(write_end)
    with os.fdopen(read_end) as events:
        said = [json.loads(line) for line in events]
    assert ran.returncode == 1
    assert [event["code"] for event in said if event["type"] == "error"] == ["device_unavailable"]
