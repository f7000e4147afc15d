"""Clocks that jump: the store's decides, and a process counts seconds on a clock that nobody sets."""

import time
from collections.abc import Callable
from pathlib import Path

import libfaketime
import pytest

from tests.chaos.scene import Scene

Begin = Callable[..., Scene]
LIBRARY = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


@pytest.mark.chaos
@pytest.mark.fault("clocks of API and worker jump by an hour, both ways", (3, 5, 23))
def test_clocks_that_jump_change_nothing(scene: Begin, tmp_path: Path) -> None:
    running = scene()
    offset = tmp_path / "offset"
    offset.write_text("+0")
    faked = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    for name in ("worker", "api"):
        running.stack.stop_one(name)
        running.stack.restart(name, faked)
    running.stack._wait_until_ready()
    job_id = running.start()
    jumps = iter(["+3600", "-3600", "+86400", "+0"])

    def jump(job_id: str) -> None:
        offset.write_text(next(jumps))
        time.sleep(1)

    phases = ["evaluating_before", "forgetting 2 of 4", "forgetting 4 of 4", "evaluating_after"]
    assert running.strike(job_id, phases, jump) == phases
    job = running.judge(job_id)
    assert job["attempts"] == 1
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
