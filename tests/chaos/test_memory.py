"""Out of memory: a limit that makes allocations fail, and one at which the kernel kills."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.cgroups import cgroup
from tests.chaos.scene import Scene, trainers

Begin = Callable[..., Scene]


@pytest.mark.chaos
@pytest.mark.fault("allocations of the trainer fail (RLIMIT_AS)", (14, 21))
def test_a_trainer_without_memory_fails_and_says_so(scene: Begin) -> None:
    running = scene(KNOWN_MAX_ATTEMPTS="3")
    job_id = running.start(
        forgetting={"epochs_per_stage": 40, "learning_rate": 1e-5, "batch_size": 200}, nowcast={"controls": []}
    )
    running.wait_for(job_id, "evaluating_before")
    for process in trainers(job_id):
        half = process.memory_info().vms // 2
        command = ["prlimit", f"--pid={process.pid}", f"--as={half}:{half}"]
        user, group = process.uids().real, process.gids().real  # root may not: it may lack CAP_SYS_RESOURCE
        subprocess.run(command, check=True, user=user, group=group, extra_groups=[])
    job = running.judge(job_id, "failed")
    assert job["error"]["code"] == "out_of_memory", running.client.logs(job_id)
    assert "forgetting.max_length" in job["error"]["hint"]


@contextmanager
def memory_limit(megabytes: int) -> Iterator[Path]:
    """A cgroup whose processes the kernel kills when they take more. Yields: the file that takes their ids."""
    with ExitStack() as stack:
        try:
            members = stack.enter_context(cgroup("memory", limit_in_bytes=megabytes << 20))
        except OSError as error:
            pytest.skip(f"no cgroups here: {error}")
        yield members


@pytest.mark.chaos
@pytest.mark.fault("the kernel kills each trainer for its memory (cgroup)", (5, 14, 21))
def test_a_trainer_that_the_kernel_kills_for_its_memory_is_started_three_times(scene: Begin) -> None:
    running = scene(KNOWN_MAX_ATTEMPTS="3")
    with memory_limit(20) as members:  # of its own: what it was forked with is not counted
        done, moved = threading.Event(), set()

        def confine() -> None:
            while not done.is_set():
                for process in trainers():
                    if process.pid not in moved and str(running.folder) in " ".join(process.cmdline()):
                        with suppress(OSError, psutil.Error):
                            members.write_text(str(process.pid))
                            moved.add(process.pid)
                time.sleep(0.01)

        watcher = threading.Thread(target=confine)
        watcher.start()
        try:
            job = running.judge(running.start(), "failed")
        finally:
            done.set()
            watcher.join()
    assert job["error"]["code"] == "worker_died"
    assert "memory" in job["error"]["hint"]
    assert job["attempts"] == 3
    assert len(moved) == 3
