"""kill -9 and SIGSTOP of every process in every phase: the job ends as it would have, with the same bytes."""

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.chaos.scene import LEASE_S, PHASES, Scene, trainers, until

Begin = Callable[..., Scene]
TARGETS = ["trainer", "fork server", "supervisor", "worker", "api", "valkey"]
QUICK = {"nowcasting", "calibrating", "charting", "packaging"}  # of this small job may be over before a fault is made


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.fault("kill -9 of {target}", (3, 5, 10, 13, 15, 16))
def test_kill_9_in_every_phase(scene: Begin, target: str) -> None:
    running = scene()
    job_id = running.start()
    assert running.strike(job_id, PHASES, lambda job: running.kill(target, job)) == PHASES
    job = running.judge(job_id)
    deaths = len(set(PHASES) - QUICK) if target not in ("api", "valkey") else 0
    assert job["attempts"] > deaths


@pytest.mark.fault("kill -9 of {target}, once", (3, 5, 10, 13, 15, 16))
@pytest.mark.parametrize("target", [pytest.param("trainer", marks=pytest.mark.chaos), "worker"])
def test_kill_9_of_who_works(scene: Begin, target: str) -> None:
    running = scene()
    job_id = running.start()
    running.strike(job_id, ["forgetting 3 of 4"], lambda job: running.kill(target, job))
    assert running.judge(job_id)["attempts"] == 2


@pytest.mark.chaos
@pytest.mark.fault("kill -9 of API, then of Valkey", (4, 8, 16))
def test_kill_9_of_the_servers(scene: Begin) -> None:
    running = scene()
    job_id = running.start()
    running.strike(job_id, ["evaluating_before"], lambda job: running.kill("api", job))
    assert running.judge(job_id)["attempts"] == 1
    job_id = running.start()
    running.strike(job_id, ["forgetting 1 of 4"], lambda job: running.kill("valkey", job))
    assert running.judge(job_id)["attempts"] == 1, "a restart of the store is not an error of the job"


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.fault("SIGSTOP of {target}, longer than the lease", (3, 5, 6, 15, 16))
def test_frozen_in_every_phase(scene: Begin, target: str) -> None:
    """A second worker may take the job. Where the trainer goes on meanwhile, each phase has a job of its own."""
    running = scene()
    running.stack.add_worker("second worker")
    struck: list[str] = []
    for phases in [PHASES] if target == "trainer" else [[phase] for phase in PHASES]:
        job_id = running.start()
        struck += running.strike(job_id, phases, lambda job: running.freeze(target, job))
        job = running.judge(job_id)
        if target in ("trainer", "worker", "api"):
            assert job["attempts"] == 1  # the lease is renewed meanwhile
    assert struck == PHASES
    running.facts["phases"] = "every"


@pytest.mark.chaos
@pytest.mark.fault("SIGSTOP of supervisor and trainer, longer than the lease", (3, 5, 6))
def test_an_owner_frozen_past_its_lease_writes_nothing_more(scene: Begin) -> None:
    running = scene()
    job_id = running.start()
    running.wait_for(job_id, "evaluating_before")
    frozen = psutil.Process(running.stack.pids()["worker"])
    family = [frozen, *frozen.children(recursive=True)]
    for process in family:
        process.suspend()
    running.stack.add_worker("second worker")
    for _ in running.client.events(job_id):
        pass
    finished, events = running.client.job(job_id), list(running.client.events(job_id))
    for process in family:
        process.resume()
    time.sleep(2)
    assert running.client.job(job_id) == finished
    assert list(running.client.events(job_id)) == events
    assert running.judge(job_id)["attempts"] == 2


@pytest.mark.chaos
@pytest.mark.fault("SIGTERM of the whole stack", (32,))
def test_a_stopped_worker_gives_its_job_back_and_another_goes_on(scene: Begin) -> None:
    """As a deploy sends it, in the middle of a stage."""
    running = scene()
    job_id = running.start(forgetting={"epochs_per_stage": 15, "learning_rate": 1e-5, "batch_size": 32})
    for event in running.client.events(job_id):
        if event["type"] == "progress" and event["phase"] == "forgetting":
            break
    running.stack.stop()
    assert trainers(job_id) == []
    running = scene()
    assert running.client.job(job_id)["status"] in ("queued", "validating", "running")
    assert running.judge(job_id, same_bytes=False)["attempts"] == 1  # being stopped is not dying
    statuses = [event["status"] for event in running.client.events(job_id) if event["type"] == "status"]
    assert statuses == ["queued", "validating", "running", "queued", "validating", "running", "succeeded"]


@pytest.mark.chaos
@pytest.mark.fault("kill -9 of every trainer", (14,))
def test_a_job_that_keeps_dying_fails(scene: Begin) -> None:
    running = scene(KNOWN_MAX_ATTEMPTS="2")
    job_id = running.start()
    deadline = time.monotonic() + 60
    while not running.client.job(job_id)["finished_at"] and time.monotonic() < deadline:
        for process in trainers(job_id):
            process.kill()
        time.sleep(0.1)
    job = running.judge(job_id, "failed")
    assert job["error"]["code"] == "worker_died"
    assert job["attempts"] == 2


@pytest.mark.chaos
@pytest.mark.fault("kill -9 of the supervisor as soon as it has a trainer", (10,))
def test_a_trainer_dies_with_its_supervisor_however_young(scene: Begin) -> None:
    """Also one that has not asked the kernel for it yet: its first event finds no reader."""
    running = scene()
    job_id = running.start()
    until(lambda: trainers(job_id), "no trainer")
    (young,) = trainers(job_id)
    running.kill("supervisor", job_id)
    until(lambda: not trainers_of(young.pid), "the young trainer outlived its supervisor")
    assert running.judge(job_id)["attempts"] == 2


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.fault("SIGTERM of one worker after the other, under load", (32,))
def test_a_rolling_restart_loses_nothing(scene: Begin) -> None:
    running = scene()
    running.stack.add_worker("second worker")
    jobs = [running.start() for _ in range(5)]
    for name in ["worker", "second worker"] * 2:
        until(lambda: trainers(), "nothing runs")
        time.sleep(LEASE_S / 2)
        running.stack.stop_one(name)
        running.stack.add_worker(name)
    assert [running.judge(job_id)["attempts"] for job_id in jobs] == [1] * len(jobs)


@pytest.mark.chaos
@pytest.mark.fault("an orphan of a dead worker", (10,))
def test_a_worker_sweeps_what_a_dead_one_has_left(scene: Begin) -> None:
    """A process that never asked to die with its parent, with a trainer's command line, below our folder of jobs."""
    running = scene()
    os.kill(running.stack.pids()["worker"], signal.SIGKILL)
    orphan = spawn_orphan("worker.trainer", f"{running.folder}/jobs/job_0")
    other = spawn_orphan("worker.trainer", f"{running.folder}-of-others/jobs/job_0")
    try:
        running.stack.restart("worker")
        orphan.wait(60)
        assert other.is_running()
    finally:
        other.kill()


def trainers_of(pid: int) -> list[psutil.Process]:
    """The trainer with this id, while it lives: one that has died may wait for a slow init to bury it."""
    return [process for process in trainers() if process.pid == pid]


def spawn_orphan(*arguments: str) -> psutil.Process:
    """A process in a session of its own whose parent has died."""
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        if (grandchild := os.fork()) == 0:
            os.setsid()
            os.execvp("python3", ["python3", "-c", "import time; time.sleep(600)", *arguments])
        os.write(write_end, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(read_end, 20))
    os.close(read_end)
    os.close(write_end)
    return psutil.Process(pid)
