"""A job run again from its manifest: the same bytes, or what differs and why; nothing runs on other inputs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from known_core import pipeline
from known_core.errors import KnownError
from known_core.events import Emit
from known_core.files import canonical_json, read_json, sha256_bytes, write_json
from known_core.hub import Hub
from known_core.manifest import verify_manifest
from known_core.reproduce import Comparison, compare, read_job_manifest, reproduce
from known_core.spec import JobSpec
from tests.known_core.conftest import Run

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


@pytest.fixture
def nowhere(tmp_path: Path) -> Hub:
    """No test here may ask the Hub."""
    return Hub("http://127.0.0.1:9", None, tmp_path / "cache", 0)


@pytest.fixture(scope="session")
def original(tiny_spec: JobSpec, hypermodel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of a tiny job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
        return pipeline.run(tiny_spec, tmp_path_factory.mktemp("original"), lambda event: None)


@pytest.fixture
def inputs(tiny_spec: JobSpec) -> dict[str, Path]:
    return {name: Path(str(getattr(tiny_spec, name))) for name in ("model", "dataset", "downstream")}


def flags(inputs: dict[str, Path]) -> list[str]:
    return [word for name, path in inputs.items() for word in (f"--{name}", str(path))]


def edited(original: Path, folder: Path, edit: Edit) -> Path:
    """A copy of a manifest with changes, beside a copy of its report; its content is that of its files."""
    manifest = read_json(original / "manifest.json")
    edit(manifest)
    manifest["content_sha256"] = sha256_bytes(canonical_json(manifest["files"]))
    write_json(folder / "manifest.json", manifest)
    shutil.copyfile(original / "report.json", folder / "report.json")
    return folder / "manifest.json"


def other_bytes(manifest: dict[str, Any]) -> None:
    """As another machine would have made them: x2 and all that depends on it."""
    for file in manifest["files"]:
        if file["path"] == "x2/model.safetensors":
            file["sha256"] = "0" * 64


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    run: Run, original: Path, inputs: dict[str, Path], hypermodel_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    renamed = {**inputs, "dataset": tmp_path / "another-name", "downstream": tmp_path / "and-another"}
    for name in ("dataset", "downstream"):
        shutil.copyfile(inputs[name], renamed[name])
    command = ("reproduce", original / "manifest.json", *flags(renamed), "--work", tmp_path / "work")
    whole_run = pipeline.run

    def interrupted_run(spec: JobSpec, folder: Path, emit: Emit) -> Path:
        def interrupting(event: dict[str, Any]) -> None:
            emit(event)
            if event["type"] == "phase" and event["detail"] == "3 of 6":
                raise KeyboardInterrupt

        return whole_run(spec, folder, interrupting)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run", interrupted_run)
        status, out, said = run(*command)
    assert status == 130
    assert out == ""
    assert f"kept in {tmp_path / 'work'}" in said
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("stage.json")}
    assert len(done) == 5  # inputs, settings, evaluation, two stages of forgetting

    status, out, said = run(*command)
    assert status == 0, said
    assert out.startswith("identical, every byte: 15 files")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    (artifacts,) = (tmp_path / "work").glob("*/artifacts")
    assert str(artifacts) in said
    assert verify_manifest(artifacts) == 15

    status, out, said = run(*command, "--exact", "--json")  # at once: the result is there
    found = json.loads(out)
    assert (status, found["identical"], found["artifacts"]) == (0, True, str(artifacts))
    assert set(found["files"].values()) == {"same"}
    assert found["stack"] == {}
    assert found["figures"]["agree"] is True


def test_other_inputs_are_refused_before_anything_runs(
    run: Run, original: Path, inputs: dict[str, Path], hypermodel_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    manifest, work = original / "manifest.json", ("--work", tmp_path / "work")
    hashes = read_json(manifest)["inputs_sha256"]
    other = {**inputs, "dataset": inputs["downstream"]}
    gone = {**inputs, "model": tmp_path / "gone"}
    cases: list[tuple[list[str], tuple[str, ...]]] = [
        (flags(other), ("input_differs", "dataset (", hashes["dataset"], hashes["downstream"])),
        (flags({"model": inputs["model"]}), ("input_missing", "--dataset PATH --downstream PATH")),
        (flags({**inputs, "base": inputs["model"]}), ("usage", "no input base")),
        ([*flags(inputs), "--state", str(inputs["model"])], ("usage", "no input state-0")),
        (flags(gone), ("file_missing", str(tmp_path / "gone"))),
    ]
    for arguments, parts in cases:
        status, out, said = run("reproduce", manifest, *arguments, *work)
        assert (status, out) == (1, "")
        assert all(part in said for part in parts), said
    assert not (tmp_path / "work").exists()


def test_another_hypermodel_is_refused(
    original: Path, inputs: dict[str, Path], nowhere: Hub, fan_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(fan_file))
    with pytest.raises(KnownError, match=r"'seeded'.*'seeded-fan'.*\(hypermodel_differs\).*seeded\.safetensors"):
        reproduce(original / "manifest.json", tmp_path / "work", inputs, nowhere, print)


def test_a_hypermodel_that_ships_is_named(
    original: Path, inputs: dict[str, Path], nowhere: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = Path(pipeline.__file__).parent / "weights" / "known-paper.safetensors"

    def with_shipped(manifest: dict[str, Any]) -> None:
        manifest["hypermodel"] = {"name": shipped.stem, "sha256": sha256_bytes(shipped.read_bytes())}

    with pytest.raises(KnownError) as caught:
        reproduce(edited(original, tmp_path, with_shipped), tmp_path / "work", inputs, nowhere, print)
    assert caught.value.hint == f"Set KNOWN_HYPERMODEL to {shipped}."


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda manifest: manifest.pop("spec"), "spec: Field required"),
        (lambda manifest: manifest["spec"].update(surprise=1), "spec/surprise"),
        (lambda manifest: manifest["spec"].update(model="/etc/passwd"), "another machine"),
        (lambda manifest: manifest["spec"].update(origins={"model": {"hub": "alice/m"}}), "model/hub"),
        (lambda manifest: manifest["inputs_sha256"].update({"../x": "0" * 64}), "inputs_sha256/../x"),
        (lambda manifest: manifest["inputs_sha256"].update({"state-0": "0" * 64}), "which are no job's"),
        (lambda manifest: manifest["inputs_sha256"].update(model="short"), "inputs_sha256/model"),
    ],
)
def test_what_is_no_manifest_of_a_job(original: Path, tmp_path: Path, edit: Edit, part: str) -> None:
    with pytest.raises(KnownError, match=r"\(manifest_invalid\)") as caught:
        read_job_manifest(edited(original, tmp_path, edit))
    assert part in caught.value.message


def test_a_manifest_that_was_changed_or_is_none(original: Path, tmp_path: Path) -> None:
    manifest = read_json(original / "manifest.json")
    other_bytes(manifest)
    write_json(tmp_path / "changed.json", manifest)
    (tmp_path / "text.json").write_text("not JSON")
    for name, part in (
        ("changed.json", "content_sha256"),
        ("text.json", "Invalid JSON"),
        ("gone.json", "No such file"),
    ):
        with pytest.raises(KnownError, match=part) as caught:
            read_job_manifest(tmp_path / name)
        assert caught.value.code == "manifest_invalid"


def compared(original: Path, folder: Path, edit: Edit) -> Comparison:
    """What running a job again would have shown, had its manifest said something else."""
    manifest = edited(original, folder, edit)
    return compare(manifest, read_job_manifest(manifest), original)


def test_other_bytes_on_the_same_stack_are_not_explained(original: Path, tmp_path: Path) -> None:
    found = compared(original, tmp_path, other_bytes)
    assert not found.identical
    assert not found.explained
    assert {path for path, state in found.files.items() if state != "same"} == {"x2/model.safetensors"}
    assert found.stack == {}


def test_another_stack_explains_other_bytes_where_the_figures_agree(original: Path, tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        other_bytes(manifest)
        manifest["versions"]["torch"] = "1.0"
        manifest["processor"] = "NVIDIA H100"

    found = compared(original, tmp_path, edit)
    assert list(found.stack) == ["torch", "processor"]
    assert found.stack["torch"].expected == "1.0"
    assert found.explained
    (tmp_path / "report.json").unlink()
    manifest = tmp_path / "manifest.json"
    unmeasured = compare(manifest, read_job_manifest(manifest), original)
    assert unmeasured.figures is None
    assert not unmeasured.explained


def with_report(original: Path, folder: Path, change: Edit) -> Comparison:
    """The same, had the report said something else on another stack."""
    report = read_json(original / "report.json")
    change(report)
    data = json.dumps(report).encode()

    def edit(manifest: dict[str, Any]) -> None:
        manifest["device"] = "cuda"
        for file in manifest["files"]:
            if file["path"] == "report.json":
                file["sha256"] = sha256_bytes(data)

    manifest = edited(original, folder, edit)
    (folder / "report.json").write_bytes(data)
    return compare(manifest, read_job_manifest(manifest), original)


def gain_of(candidate: str, mean: float, half: float) -> Edit:
    def change(report: dict[str, Any]) -> None:
        report["transfer"][candidate]["gain"] |= {"mean": mean, "low": mean - half, "high": mean + half}

    return change


def test_figures_agree_where_intervals_overlap(original: Path, tmp_path: Path) -> None:
    here = read_json(original / "report.json")["transfer"]["x4"]["gain"]
    assert with_report(original, tmp_path, gain_of("x4", here["high"] + 0.01, 0.02)).explained
    apart = with_report(original, tmp_path, gain_of("x4", here["high"] + 0.02, 0.01))
    assert apart.figures is not None
    assert not apart.figures.agree
    assert not apart.explained
    other = with_report(original, tmp_path, lambda report: report.update(selected="x8"))
    assert other.figures is not None
    assert not other.figures.agree


def test_what_differs_is_shown(
    run: Run, original: Path, inputs: dict[str, Path], hypermodel_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    (tmp_path / "[red]").mkdir()

    def edit(manifest: dict[str, Any]) -> None:
        other_bytes(manifest)
        manifest["files"].append({"path": "[red]/notes.txt", "bytes": 1, "sha256": "0" * 64})
        manifest["versions"]["torch"] = "1.0"

    manifest = edited(original, tmp_path, edit)
    monkeypatch.setattr(pipeline, "run", lambda spec, folder, emit: original)
    status, out, _ = run("reproduce", manifest, *flags(inputs), "--work", tmp_path / "work")
    assert status == 0
    words = " ".join(out.split())
    for part in ("x2/model.safetensors differs", "[red]/notes.txt missing", "x4/model.safetensors same", "torch 1.0",
                 "the usual reason", "Gains, points", "The figures agree"):  # fmt: skip
        assert part in words
    assert run("reproduce", manifest, *flags(inputs), "--work", tmp_path / "work", "--exact")[0] == 1
    manifest = edited(original, tmp_path, other_bytes)
    status, out, _ = run("reproduce", manifest, *flags(inputs), "--work", tmp_path / "work")
    assert status == 1
    assert "Versions, device and engine are the same" in out
    (tmp_path / "report.json").unlink()
    assert "No figures were compared" in run("reproduce", manifest, *flags(inputs), "--work", tmp_path / "work")[1]


def test_a_trajectory_is_reproduced(nowhere: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOWN_HYPERMODEL")
    states = []
    for index in range(5):
        torch.manual_seed(index)
        states.append(tmp_path / f"{index}.safetensors")
        save_file({"layer.weight": torch.randn(8, 4)}, states[index], metadata={"format": "pt"})
    artifacts = pipeline.run(JobSpec(trajectory=tuple(states)), tmp_path / "job", lambda event: None)
    given = {f"state-{index}": path for index, path in enumerate(states)}
    events: list[dict[str, Any]] = []
    found = reproduce(artifacts / "manifest.json", tmp_path / "work", given, nowhere, events.append)
    assert found.identical
    assert found.figures is None
    assert not replace(found, stack={}).explained
    assert [event["phase"] for event in events if event["type"] == "phase"] == [
        "checking", "downloading", "nowcasting", "charting", "packaging"
    ]  # fmt: skip
    del given["state-3"], given["state-4"]
    with pytest.raises(KnownError, match=r"state-3, state-4.*\(input_missing\).*--state PATH;"):
        reproduce(artifacts / "manifest.json", tmp_path / "work", given, nowhere, events.append)
