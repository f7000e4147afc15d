"""The network between a worker and the store: cut, black, slow."""

import time
from collections.abc import Callable

import pytest

from tests.chaos.proxy import Proxy
from tests.chaos.scene import LEASE_S, Scene, trainers, until
from tests.chaos.test_store import port_of, through

Begin = Callable[..., Scene]


def behind(running: Scene, proxy: Proxy) -> None:
    """Put the one worker behind a proxy."""
    running.stack.stop_one("worker")
    running.stack.add_worker("worker", through(proxy, running.stack.store_url))


@pytest.mark.chaos
@pytest.mark.fault("network cut for less than the lease, twice", (4, 16))
def test_a_short_cut_changes_nothing(scene: Begin) -> None:
    running = scene()
    with Proxy(port_of(running.stack.store_url)) as proxy:
        behind(running, proxy)
        job_id = running.start()

        def cut(job_id: str) -> None:
            proxy.mode = "cut"
            time.sleep(LEASE_S / 3)
            proxy.mode = "pass"

        phases = ["forgetting 1 of 4", "evaluating_after"]
        assert running.strike(job_id, phases, cut) == phases
        assert running.judge(job_id)["attempts"] == 1


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.fault("no packet passes for longer than the lease", (3, 5, 6))
def test_a_worker_cut_off_stops_its_trainer_and_another_finishes(scene: Begin) -> None:
    running = scene()
    with Proxy(port_of(running.stack.store_url)) as proxy:
        behind(running, proxy)
        job_id = running.start(forgetting={"epochs_per_stage": 120, "learning_rate": 1e-5, "batch_size": 32})
        running.wait_for(job_id, "forgetting 1 of 4")
        (trainer,) = trainers(job_id)
        proxy.mode = "blackhole"
        begun = time.monotonic()
        trainer.wait(LEASE_S + 15)  # nobody but its worker can stop it
        assert time.monotonic() - begun > LEASE_S / 2
        work = running.folder / "jobs" / job_id / "work"
        assert not list(work.glob("calibration-*")), "it was not stopped, it was done"
        assert running.client.job(job_id)["attempts"] == 1
        running.stack.add_worker("second worker")
        until(lambda: running.client.job(job_id)["attempts"] == 2, "the second worker did not take it")
        proxy.mode = "pass"
        job = running.judge(job_id, same_bytes=False)
        events = list(running.client.events(job_id))
        time.sleep(LEASE_S)
        assert running.client.job(job_id).raw == job
        assert list(running.client.events(job_id)) == events
        assert job["attempts"] == 2


@pytest.mark.chaos
@pytest.mark.fault("each packet 0.1 s late", (3, 16))
def test_a_slow_network_only_costs_time(scene: Begin) -> None:
    running = scene()
    with Proxy(port_of(running.stack.store_url)) as proxy:
        proxy.delay_s = 0.1
        behind(running, proxy)
        assert running.judge(running.start())["attempts"] == 1
