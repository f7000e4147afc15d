"""Events of a running job, and errors that travel between processes."""

import pickle
from typing import Any

import pytest

from known_core.errors import KnownError
from known_core.events import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("known_core.events.time.monotonic", lambda: now[0])
    return now


def test_phases_steps_and_the_time_left(clock: list[float]) -> None:
    seen: list[dict[str, Any]] = []
    reporter = Reporter(seen.append)
    reporter.phase("forgetting", "1 of 4")
    clock[0] += 10
    reporter.step(2, 10)
    reporter.step(3, 10)  # too soon after the last
    clock[0] += 10
    reporter.step(10, 10)
    reporter.step(10, 10)  # the last step is always told
    reporter.metric("accuracy", 0.5, candidate="x2")
    assert seen[0] == {"type": "phase", "phase": "forgetting", "detail": "1 of 4"}
    assert [(event["step"], event["eta_seconds"]) for event in seen if event["type"] == "progress"] == [
        (2, 40.0), (10, 0.0), (10, 0.0)
    ]  # fmt: skip
    assert seen[-1] == {
        "type": "metric", "name": "accuracy", "value": 0.5, "phase": "forgetting", "candidate": "x2"
    }  # fmt: skip


def test_the_loss_of_an_event_is_the_mean_since_the_last(clock: list[float]) -> None:
    seen: list[dict[str, Any]] = []
    reporter = Reporter(seen.append)
    reporter.phase("forgetting", "1 of 2")
    for step, loss in enumerate((4.0, 2.0, 1.0), start=1):
        clock[0] += 0.3
        reporter.step(step, 4, loss)
    reporter.phase("forgetting", "2 of 2")
    clock[0] += 1
    reporter.step(4, 4)
    assert [event.get("loss") for event in seen if event["type"] == "progress"] == [4.0, 1.5, None]


def test_errors_survive_pickling() -> None:
    error = KnownError("header_truncated", "model has 3 bytes", "Upload again.", pointer="/model", retryable=True)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == "model has 3 bytes (header_truncated). Upload again."


def test_the_first_pointer_stays() -> None:
    assert KnownError("a", "b").at("/model").at("/dataset").pointer == "/model"
    assert str(KnownError("a", "b")) == "b (a)."
