"""Memory that runs out: the job goes on with less at once, and ends as if it had begun so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from known_core import pipeline
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.inputs import lay_out
from known_core.memory import free_memory, halving, ran_out_of_memory
from known_core.models.registered import SmallCNN
from known_core.spec import ForgettingSettings, JobSpec, NowcastSettings
from known_core.tasks import TASKS
from known_core.tasks.opened import OpenTask
from known_core.tuning import less_memory

Event = dict[str, Any]


class Killed(BaseException):
    """What stops a run here: nothing may catch it."""


@pytest.fixture(autouse=True)
def _hypermodel(fan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(fan_file))


@pytest.fixture(scope="module")
def spec(tiny_spec: JobSpec) -> JobSpec:
    """Batch normalisation tells micro batches of different sizes apart: the bytes show with which one it trained."""
    return tiny_spec.model_copy(update={"nowcast": NowcastSettings(recurrences=1, controls=())})


@contextmanager
def memory_for(training: Callable[[], int], evaluating: int = 1 << 30) -> Iterator[list[int]]:
    """The real forward, which runs out of memory above so many examples; yields the sizes of the batches trained on."""
    real = SmallCNN.forward
    trained: list[int] = []

    def forward(self: SmallCNN, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if len(pixel_values) > (training() if self.training else evaluating):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.training:
            trained.append(len(pixel_values))
        return real(self, pixel_values, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SmallCNN, "forward", forward)
        yield trained


def content(artifacts: Path) -> str:
    return str(read_json(artifacts / "manifest.json")["content_sha256"])


def with_micro_batch(spec: JobSpec, size: int) -> JobSpec:
    return spec.model_copy(update={"forgetting": spec.forgetting.model_copy(update={"micro_batch_size": size})})


def test_a_job_that_runs_out_of_memory_ends_as_one_with_smaller_micro_batches(spec: JobSpec, tmp_path: Path) -> None:
    events: list[Event] = []
    with memory_for(lambda: 8, evaluating=50) as trained:
        artifacts = pipeline.run(spec, tmp_path / "short", events.append)
    assert max(trained) == 8
    said = [event for event in events if event["type"] == "out_of_memory"]
    assert [(event["phase"], event["micro_batch_size"]) for event in said] == [
        ("evaluating_before", 16), ("evaluating_before", 8)
    ]  # fmt: skip
    manifest = read_json(artifacts / "manifest.json")
    assert [entry["found"]["micro_batch_size"] for entry in manifest["ran_out_of_memory"]] == [16, 8]
    assert "2.00 GiB" in manifest["ran_out_of_memory"][0]["said"]
    assert manifest["spec"]["forgetting"]["batch_size"] == 32
    assert read_json(artifacts / "report.json")["settings"]["forgetting"]["micro_batch_size"] == 8
    set_so = pipeline.run(with_micro_batch(spec, 8), tmp_path / "set", lambda event: None)
    undisturbed = pipeline.run(spec, tmp_path / "undisturbed", lambda event: None)
    assert content(artifacts) == content(set_so) != content(undisturbed)
    assert read_json(undisturbed / "manifest.json")["ran_out_of_memory"] == []


def test_memory_that_runs_out_late_is_remembered_by_a_job_that_is_killed_after(spec: JobSpec, tmp_path: Path) -> None:
    """It runs out in the third training. The two before it are done again: a trajectory is of one kind."""
    events: list[Event] = []
    limit = 1 << 30

    def emit(event: Event) -> None:
        nonlocal limit
        if event.get("detail") == "3 of 4" and limit > 16:
            limit = 16
        elif event.get("detail") == "3 of 4":
            raise Killed
        events.append(event)

    with memory_for(lambda: limit), pytest.raises(Killed):
        pipeline.run(spec, tmp_path / "job", emit)
    assert [event["phase"] for event in events if event["type"] == "out_of_memory"] == ["forgetting"]
    resumed: list[Event] = []
    with memory_for(lambda: 1 << 30) as trained:  # with memory to spare: it goes on with what it had found
        artifacts = pipeline.run(spec, tmp_path / "job", resumed.append)
    assert max(trained) == 16
    assert not [event for event in resumed if event["type"] == "out_of_memory"]
    assert [entry["phase"] for entry in read_json(artifacts / "manifest.json")["ran_out_of_memory"]] == ["forgetting"]
    set_so = pipeline.run(with_micro_batch(spec, 16), tmp_path / "set", lambda event: None)
    assert content(artifacts) == content(set_so)


def test_where_not_one_example_fits_the_job_fails(spec: JobSpec, tmp_path: Path) -> None:
    events: list[Event] = []
    with memory_for(lambda: 0), pytest.raises(KnownError, match=r"2\.00 GiB.*\(out_of_memory\)"):
        pipeline.run(spec, tmp_path / "job", events.append)
    sizes = [event["micro_batch_size"] for event in events if event["type"] == "out_of_memory"]
    assert sizes == [16, 8, 4, 2, 1]  # a lone example is shown twice; this network cannot recompute activations


def test_memory_that_runs_out_elsewhere_halves_no_training(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipeline, "nowcast", full)
    events: list[Event] = []
    with pytest.raises(KnownError, match="out_of_memory"):
        pipeline.run(spec, tmp_path / "job", events.append)
    assert not [event for event in events if event["type"] == "out_of_memory"]


def test_scores_need_no_memory_for_the_whole_batch(spec: JobSpec, tmp_path: Path) -> None:
    lay_out(spec, tmp_path / "inputs")
    task = OpenTask(TASKS["image-classification"], spec, tmp_path / "inputs", tmp_path / "cache")
    model = task.load(Checkpoint(tmp_path / "inputs" / "model"))
    whole = task.score(model, task.evaluation.items, torch.device("cpu"))
    with memory_for(lambda: 0, evaluating=3):
        parts = task.score(model, task.evaluation.items, torch.device("cpu"))
    assert (parts.correct == whole.correct).all()
    assert parts.loss == pytest.approx(whole.loss, abs=1e-5)


class Recomputing(SmallCNN):
    """A network whose library can recompute activations."""

    def gradient_checkpointing_enable(self) -> None:
        self.recomputes = True


@pytest.mark.parametrize(("network", "asked", "steps"), [
    (SmallCNN, None, [(6, False), (3, False), (1, False)]),
    (Recomputing, None, [(6, False), (3, False), (1, False), (1, True)]),
    (Recomputing, True, [(6, True), (3, True), (1, True)]),
    (Recomputing, False, [(6, False), (3, False), (1, False)]),
])  # fmt: skip
def test_less_is_half_the_examples_and_at_last_checkpointing(
    network: Any, asked: bool | None, steps: list[tuple[int, bool]]
) -> None:
    class Task:
        def load(self, start: Checkpoint) -> Any:
            return network(3, 1, 8, width=2, norm="none")

    request = ForgettingSettings(batch_size=12, gradient_checkpointing=asked)
    settings = request.model_copy(update={"micro_batch_size": 12, "gradient_checkpointing": bool(asked)})
    seen, nothing = [], None
    while (found := less_memory(Task(), nothing, settings, request)) is not None:  # type: ignore[arg-type]
        settings = settings.model_copy(update=found)
        seen.append((settings.micro_batch_size, settings.gradient_checkpointing))
    assert seen == steps


def test_only_memory_that_ran_out_is_tried_again() -> None:
    tried: list[int] = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return size

    assert halving(9, work) == 2
    assert tried == [9, 4, 2]
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        halving(1, lambda size: work(3))
    with pytest.raises(ZeroDivisionError):
        halving(8, lambda size: size // 0)
    assert not ran_out_of_memory(RuntimeError("shapes differ"))
    free_memory()
