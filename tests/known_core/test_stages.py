"""Stages run once for the same inputs, and again for others or after a failure."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from known_core.stages import Stages


class Work:
    def __init__(self, fail: bool = False) -> None:
        self.calls = 0
        self.fail = fail

    def __call__(self, out: Path) -> None:
        self.calls += 1
        (out / "result").write_text(str(self.calls))
        if self.fail:
            raise RuntimeError("killed")


def test_the_same_inputs_are_worked_once(tmp_path: Path) -> None:
    work = Work()
    first = Stages(tmp_path).run("forget", {"a": 1, "b": [2]}, work)
    again = Stages(tmp_path).run("forget", {"b": [2], "a": 1}, work)  # another process, another order
    assert first == again
    assert work.calls == 1
    assert (first / "result").read_text() == "1"
    assert first.name.startswith("forget-")


def test_other_inputs_or_another_name_are_another_stage(tmp_path: Path) -> None:
    stages, work = Stages(tmp_path), Work()
    folders = {
        stages.run("a", {"x": 1}, work), stages.run("a", {"x": 2}, work), stages.run("b", {"x": 1}, work),
        stages.run("a", {"x": 1, "y": 1}, work),
    }  # fmt: skip
    assert len(folders) == work.calls == 4


def test_a_failed_stage_leaves_nothing_and_runs_again(tmp_path: Path) -> None:
    work = Work(fail=True)
    with pytest.raises(RuntimeError, match="killed"):
        Stages(tmp_path).run("a", {}, work)
    assert list(tmp_path.iterdir()) == []
    work.fail = False
    Stages(tmp_path).run("a", {}, work)
    assert work.calls == 2


def test_seconds_are_those_of_the_run_that_did_the_work(tmp_path: Path) -> None:
    first, second = Stages(tmp_path), Stages(tmp_path)
    first.run("a", {}, Work())
    second.run("a", {}, Work())
    assert first.seconds == second.seconds
    assert 0 <= first.seconds["a"] < 5


def test_those_that_want_a_shared_stage_at_once_make_it_once(tmp_path: Path) -> None:
    calls = []

    def slow(out: Path) -> None:
        calls.append(out)
        time.sleep(0.3)
        (out / "result").write_text(str(len(calls)))

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: Stages(tmp_path, shared=True).run("a", {}, slow), range(4)))
    assert len(calls) == 1
    assert {folder / "result" for folder in folders} == {folders[0] / "result"}
    assert (folders[0] / "result").read_text() == "1"


def test_an_owner_that_froze_in_a_stage_does_not_hold_up_the_next(tmp_path: Path) -> None:
    """As when a job's lease passes on: the second makes the stage, the first spoils nothing."""
    entered, thaw = Event(), Event()

    def freeze(out: Path) -> None:
        entered.set()
        thaw.wait(30)
        (out / "result").write_text("frozen")

    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(Stages(tmp_path).run, "a", {}, freeze)
        assert entered.wait(30)
        folder = Stages(tmp_path).run("a", {}, Work())
        thaw.set()
        assert frozen.result(30) == folder
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "result").read_text() == "1"
