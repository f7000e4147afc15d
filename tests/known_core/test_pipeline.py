"""Whole jobs in the smallest: artifacts, report, resumption with the same bytes."""

import html
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from known_core import pipeline
from known_core.calibration import recalibrate
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.events import Emit
from known_core.files import read_json, sha256_file
from known_core.inputs import lay_out
from known_core.manifest import verify_manifest
from known_core.report.build import _notes
from known_core.spec import JobSpec, LandscapeSettings, NowcastSettings, OutputSettings
from known_core.tasks import TASKS
from known_core.tasks.opened import OpenTask

Event = dict[str, Any]
PHASES = ["downloading", "evaluating_before", *["forgetting"] * 6, "nowcasting", "calibrating", "evaluating_after",
          "charting", "packaging"]  # fmt: skip
CANDIDATES = ["x2", "x4", "x8", "continued", "swa"]


@dataclass
class Job:
    spec: JobSpec
    folder: Path
    events: list[Event] = field(default_factory=list)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def steps(self) -> int:
        return sum(event["type"] == "progress" for event in self.events)


class Killed(BaseException):
    """What stops a run in these tests: nothing may catch it."""


def killing(when: Callable[[Event], bool], events: list[Event]) -> Emit:
    def emit(event: Event) -> None:
        events.append(event)
        if when(event):
            raise Killed

    return emit


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


@pytest.fixture(scope="session")
def finished(tiny_spec: JobSpec, hypermodel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that ran undisturbed."""
    job = Job(tiny_spec, tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
        assert pipeline.run(job.spec, job.folder, job.events.append) == job.artifacts
    return job


def test_phases_come_in_order(finished: Job) -> None:
    assert finished.events[0] == {"type": "status", "status": "running"}
    phases = [event for event in finished.events if event["type"] == "phase"]
    assert [event["phase"] for event in phases] == PHASES
    assert [event["detail"] for event in phases if event["phase"] == "forgetting"] == [
        *(f"{k} of 6" for k in range(1, 5)), "5 of 6, continued", "6 of 6, swa"
    ]  # fmt: skip
    for event in finished.events:
        if event["type"] == "progress":
            assert 0 < event["step"] <= event["total"]
    metrics = [event for event in finished.events if event["type"] == "metric"]
    assert [event.get("candidate") or event["state"] for event in metrics] == [
        "unchanged",
        *range(1, 5),
        "continued",
        "swa",
        *CANDIDATES,
    ]


def test_artifacts_are_listed_and_verify(finished: Job) -> None:
    names = {
        path.relative_to(finished.artifacts).as_posix() for path in finished.artifacts.rglob("*") if path.is_file()
    }
    weights = {f"{name}/{file}" for name in ("unchanged", *CANDIDATES) for file in ("config.json", "model.safetensors")}
    assert names == weights | {"report.json", "report.md", "report.html", "manifest.json"}
    assert verify_manifest(finished.artifacts) == 15
    manifest = read_json(finished.artifacts / "manifest.json")
    assert manifest["inputs_sha256"]["dataset"] == sha256_file(Path(str(finished.spec.dataset)))
    assert manifest["subsets"][0]["examples"] == 240
    assert manifest["hypermodel"]["name"] == "seeded"
    assert str(finished.folder) not in (finished.artifacts / "manifest.json").read_text()
    assert not list(finished.folder.rglob("*.tmp"))


def test_candidates_come_in_shards_where_asked(finished: Job, tmp_path: Path) -> None:
    """The trainings are taken from the finished job: only what follows them is done again."""
    job = Job(finished.spec.model_copy(update={"output": OutputSettings(max_shard_size="2KB")}), tmp_path / "job")
    shutil.copytree(finished.folder / "work", job.folder / "work")
    pipeline.run(job.spec, job.folder, job.events.append)
    messages = [event for event in job.events if event["type"] == "fan_out"]
    for name in CANDIDATES:
        files = sorted(path.name for path in (job.artifacts / name).glob("*.safetensors"))
        assert len(files) > 2
        assert messages == [{"type": "fan_out", "shards": len(files)}]
        index = read_json(job.artifacts / name / "model.safetensors.index.json")
        assert sorted(set(index["weight_map"].values())) == files
        found, whole = Checkpoint(job.artifacts / name), Checkpoint(finished.artifacts / name)
        assert found.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(found.read(tensor), whole.read(tensor)) for tensor in whole.tensors)
    assert [path.name for path in (job.artifacts / "unchanged").glob("*.safetensors")] == ["model.safetensors"]
    assert verify_manifest(job.artifacts) > 15


def test_unchanged_is_the_given_model(finished: Job) -> None:
    assert (finished.artifacts / "unchanged" / "model.safetensors").read_bytes() == Path(
        str(finished.spec.model)
    ).read_bytes()
    assert read_json(finished.artifacts / "unchanged" / "config.json") == finished.spec.config


def test_the_report_has_gains_with_intervals(finished: Job) -> None:
    report = read_json(finished.artifacts / "report.json")
    assert report["selected"] in ("unchanged", *CANDIDATES)
    assert set(report["transfer"]) == set(report["own_task"]) == {"unchanged", *CANDIDATES}
    for name, row in report["transfer"].items():
        assert len(row["accuracy"]) == 3
        if name != "unchanged":
            gain = row["gain"]
            assert gain["low"] <= gain["mean"] <= gain["high"]
            assert gain["n"] == 3
            assert gain["mean"] == pytest.approx(row["mean"] - report["transfer"]["unchanged"]["mean"])
    assert len(report["forgetting_accuracy"]) == 5
    assert report["own_task"]["unchanged"]["accuracy"] == report["forgetting_accuracy"][0]
    assert report["own_task"]["x2"]["difference"]["n"] == 80
    markdown = (finished.artifacts / "report.md").read_text()
    assert report["conclusion"] in markdown
    assert report["conclusion"] in html.unescape((finished.artifacts / "report.html").read_text())
    assert all(f"| {name} |" in markdown for name in ("unchanged", *CANDIDATES))


@pytest.mark.parametrize(
    ("counts", "accuracy", "suspicious"),
    [([25, 25, 25, 25], 0.30, True), ([25, 25, 25, 25], 0.60, False), ([90, 10], 0.905, True), ([90, 10], 0.95, False)],
)
def test_weights_that_do_not_know_their_own_task_are_noted(
    counts: list[int], accuracy: float, suspicious: bool
) -> None:
    train = {str(index): count for index, count in enumerate(counts)}
    notes = _notes({"evaluation_source": "test split", "dataset": {"train": train}}, 3, 5, accuracy)
    assert any("commonest class" in note and f"{100 * accuracy:.1f} %" in note for note in notes) == suspicious


def test_only_predicted_weights_and_statistics_differ_from_theta_0(finished: Job) -> None:
    before = load_file(finished.artifacts / "unchanged" / "model.safetensors")
    for name in ("x2", "x4", "x8"):
        after = load_file(finished.artifacts / name / "model.safetensors")
        assert list(after) == list(before)
        for tensor_name, tensor in before.items():
            normalisation = tensor_name.startswith(("features.0.1.", "features.1.1.", "features.2.1."))
            statistics = tensor_name.endswith(("running_mean", "running_var"))
            carried = normalisation and not statistics
            assert torch.equal(after[tensor_name], tensor) == carried, tensor_name
        Checkpoint(finished.artifacts / name).check_finite()


def test_statistics_are_those_of_the_data(finished: Job, tmp_path: Path) -> None:
    """The first layer's running mean of x2 is the mean of its convolution over D_0."""
    lay_out(finished.spec, tmp_path / "inputs")
    opened = OpenTask(TASKS["image-classification"], finished.spec, tmp_path / "inputs", tmp_path / "cache")
    checkpoint = Checkpoint(finished.artifacts / "x2")
    with torch.inference_mode():
        means = [
            torch.nn.functional.conv2d(
                batch, checkpoint.read("features.0.0.weight"), checkpoint.read("features.0.0.bias"), padding=1
            ).mean((0, 2, 3))
            for batch in (inputs["pixel_values"] for inputs in opened.inputs(torch.device("cpu"), 32))
            if len(batch) == 32
        ]
    expected = torch.stack(means).mean(0)
    torch.testing.assert_close(checkpoint.read("features.0.1.running_mean"), expected, atol=1e-5, rtol=1e-4)
    opened.load(checkpoint)  # and it loads


def test_a_finished_job_run_again_does_nothing(finished: Job) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    events: list[Event] = []
    assert pipeline.run(finished.spec, finished.folder, events.append) == finished.artifacts
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before
    assert [event["type"] for event in events] == ["status"]


def test_the_report_has_what_its_figures_show(finished: Job) -> None:
    """A chain's four states, and the two controls that are trained on their own."""
    report = read_json(finished.artifacts / "report.json")
    assert [figure["name"] for figure in report["figures"]] == [
        "before_after", "landscape", "forgetting", "weight_changes", "losses"
    ]  # fmt: skip
    names = [f"state {index}" for index in range(1, 5)]
    assert [stage["name"] for stage in report["losses"]] == [*names, "continued", "swa"]
    assert [stage["examples"] for stage in report["losses"]] == [121, 61, 30, 15, 240, 240]
    assert [step for step, _ in report["losses"][0]["curve"]] == [1, 2, 3, 4]  # 121 examples in batches of 32
    plane = report["plane"]
    assert list(plane["points"]) == [*names, *CANDIDATES]
    surface = plane["surface"]
    assert len(surface["loss"]) == len(surface["a"]) == len(surface["b"]) == 9
    assert (surface["examples"], surface["batch_norm"]) == (32, 32)
    shown = report["weight_changes"]["candidate"]
    assert shown == report["selected"] or report["selected"] == "unchanged"
    before, after = (load_file(finished.artifacts / name / "model.safetensors") for name in ("unchanged", shown))
    for tensor in report["weight_changes"]["tensors"]:
        given, difference = before[tensor["name"]], after[tensor["name"]] - before[tensor["name"]]
        assert tensor["change"] == pytest.approx(float(difference.norm() / given.norm()), rel=1e-4)
    seconds = read_json(finished.artifacts / "manifest.json")["seconds"]
    assert {"plane", "surface"} <= seconds.keys()


def test_the_loss_at_the_given_weights_is_the_one_evaluated(tiny_spec: JobSpec, tmp_path: Path) -> None:
    """Where the sample is all of what is evaluated on; and progress of trainings carries their loss."""
    settings = {"landscape": LandscapeSettings(points=3, examples=1000)}
    spec = tiny_spec.model_copy(update={"evaluation": tiny_spec.evaluation.model_copy(update=settings)})
    events: list[Event] = []
    report = read_json(pipeline.run(spec, tmp_path / "job", events.append) / "report.json")
    at = report["plane"]["surface"]["at"]
    for name, row in report["own_task"].items():
        assert at[name] == pytest.approx(row["loss"], rel=1e-5), name
    assert {"loss" in event for event in events if event["type"] == "progress" and event["phase"] == "forgetting"} == {
        True
    }


def _after_stage_2(event: Event) -> bool:
    return bool(event["type"] == "phase" and event["detail"] == "3 of 6")


def _while_nowcasting(event: Event) -> bool:
    return bool(event["type"] == "progress" and event["phase"] == "nowcasting")


def _while_charting(event: Event) -> bool:
    return bool(event["type"] == "progress" and event["phase"] == "charting")


def _at_packaging(event: Event) -> bool:
    return bool(event["type"] == "phase" and event["phase"] == "packaging")


@pytest.mark.parametrize(
    "when",
    [
        _while_nowcasting,
        *(pytest.param(when, marks=pytest.mark.slow) for when in (_after_stage_2, _while_charting, _at_packaging)),
    ],
)
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(
    finished: Job, tmp_path: Path, when: Callable[[Event], bool]
) -> None:
    with pytest.raises(Killed):
        pipeline.run(finished.spec, tmp_path, killing(when, []))
    assert not (tmp_path / "artifacts").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/stage.json")}
    assert len(done) >= 4  # inputs, evaluation, two stages of forgetting
    resumed: list[Event] = []
    pipeline.run(finished.spec, tmp_path, resumed.append)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert sum(event["type"] == "progress" for event in resumed) < finished.steps()
    later = resumed.index({"type": "phase", "phase": "forgetting", "detail": "3 of 6"})
    assert not [event for event in resumed[:later] if event["type"] == "progress"]
    contents = [
        read_json(folder / "manifest.json")["content_sha256"] for folder in (tmp_path / "artifacts", finished.artifacts)
    ]
    assert contents[0] == contents[1]
    assert [event["phase"] for event in resumed if event["type"] == "phase"] == PHASES


def test_a_model_that_is_not_finite(tiny_spec: JobSpec, tmp_path: Path) -> None:
    tensors = load_file(str(tiny_spec.model))
    tensors["hidden.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KnownError, match=r"'hidden\.weight'.*\(nonfinite_weights\)"):
        pipeline.run(tiny_spec.model_copy(update={"model": tmp_path / "model.safetensors"}), tmp_path / "job", print)
    assert not (tmp_path / "job" / "artifacts").exists()


def test_a_candidate_that_is_not_finite_is_not_delivered(
    tiny_spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thing that changes a candidate: its batch-norm statistics."""

    def broken(model: nn.Module, *arguments: Any) -> None:
        recalibrate(model, *arguments)
        model.get_buffer("features.0.1.running_var")[0] = float("inf")

    monkeypatch.setattr("known_core.stage_work.recalibrate", broken)
    with pytest.raises(KnownError, match=r"'features\.0\.1\.running_var'.*\(nonfinite_weights\)"):
        pipeline.run(tiny_spec, tmp_path / "job", lambda event: None)
    assert not (tmp_path / "job" / "artifacts").exists()


def test_nothing_is_written_for_a_job_that_cannot_be(tiny_spec: JobSpec, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(KnownError, match=r"\(unsupported_architecture\)"):
        pipeline.run(tiny_spec.model_copy(update={"config": {"architecture": "x"}}), tmp_path / "job", events.append)
    assert not (tmp_path / "job").exists()
    assert events == []


def test_another_downstream_folder_is_another_input(tiny_spec: JobSpec, tmp_path: Path) -> None:
    """Folders are hashed file by file: a changed request must not take the old data."""
    for name, label in (("a", "5"), ("b", "6")):
        lay_out(tiny_spec, tmp_path / name)
        (tmp_path / name / "downstream" / "note.txt").write_text(label)
        spec = tiny_spec.model_copy(update={"downstream": tmp_path / name / "downstream"})
        with pytest.raises(Killed):
            pipeline.run(spec, tmp_path / "job", killing(lambda event: event.get("phase") == "evaluating_before", []))
    assert len(list((tmp_path / "job" / "work").glob("inputs-*"))) == 2


@pytest.fixture(scope="session")
def fan(tiny_spec: JobSpec, fan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with a hyper-model that reads fans, every control, and one of them asked for."""
    spec = tiny_spec.model_copy(
        update={
            "nowcast": NowcastSettings(recurrences=1, controls=("continued", "mean", "shrink", "swa", "mean")),
            "evaluation": tiny_spec.evaluation.model_copy(update={"select": "mean"}),
        }
    )
    job = Job(spec, tmp_path_factory.mktemp("fan-job"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNOWN_HYPERMODEL", str(fan_file))
        pipeline.run(job.spec, job.folder, job.events.append)
    return job


def test_a_fan_starts_every_stage_at_theta_0(fan: Job) -> None:
    details = [event["detail"] for event in fan.events if event.get("phase") == "forgetting" and "detail" in event]
    assert details == [*(f"{k} of 5" for k in range(1, 5)), "5 of 5, swa"]  # the first is "continued" too
    starts = {read_json(path)["inputs"]["start"] for path in (fan.folder / "work").glob("fan-*/stage.json")}
    assert len(starts) == 1
    assert next(iter(starts)).startswith("inputs-")
    assert len(read_json(fan.artifacts / "report.json")["forgetting_accuracy"]) == 5


def test_controls_are_candidates_like_any_other(fan: Job) -> None:
    report = read_json(fan.artifacts / "report.json")
    assert list(report["transfer"]) == ["unchanged", "x2", "continued", "mean", "shrink", "swa"]
    assert report["selected"] == "mean"
    assert report["conclusion"].startswith("You asked for mean.")
    states = [load_file(path) for path in sorted((fan.folder / "work").glob("fan-*/state/model.safetensors"))]
    given, x2, continued, mean, shrink, swa = (
        load_file(fan.artifacts / name / "model.safetensors") for name in report["transfer"]
    )
    name = "hidden.weight"
    assert torch.equal(continued[name], states[0][name])
    torch.testing.assert_close(mean[name], torch.stack([given[name], *(state[name] for state in states)]).mean(0))
    ratio = shrink[name] / given[name]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    torch.testing.assert_close(shrink[name].norm(), x2[name].norm())
    assert not torch.equal(swa[name], continued[name])  # 2 epochs instead of 1, on the same data


def test_a_candidate_that_is_not_made_cannot_be_selected(tiny_spec: JobSpec, tmp_path: Path) -> None:
    evaluation = tiny_spec.evaluation.model_copy(update={"select": "shrink"})
    with pytest.raises(KnownError, match=r"'shrink'.*'x2', 'x4', 'x8', 'continued', 'swa'.*\(candidate_unknown\)"):
        pipeline.run(tiny_spec.model_copy(update={"evaluation": evaluation}), tmp_path / "job", print)
