"""A job's inputs: what inspection says of them, and to which field of the request each error points."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from known_core import hypermodels, inspection
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.inputs import lay_out
from known_core.sample_data import ImageArrays, write_imagefolder
from known_core.spec import EvaluationSettings, JobSpec, NowcastSettings
from known_core.tasks import TASKS
from known_core.tasks.base import Labelled
from known_core.tasks.opened import OpenTask, stratified_split

TASK = TASKS["image-classification"]


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


def changed(spec: JobSpec, **changes: Any) -> JobSpec:
    return spec.model_copy(update=changes)


def refused(spec: JobSpec, code: str, pointer: str) -> KnownError:
    with pytest.raises(KnownError) as caught:
        inspection.inspect(spec)
    assert (caught.value.code, caught.value.pointer) == (code, pointer)
    return caught.value


def opened(spec: JobSpec, folder: Path) -> OpenTask:
    lay_out(spec, folder / "inputs")
    return OpenTask(TASK, spec, folder / "inputs", folder / "cache")


def items_of(part: Labelled) -> list[dict[str, torch.Tensor]]:
    return [part.items[index] for index in range(len(part.labels))]


def test_what_is_understood(tiny_spec: JobSpec) -> None:
    summary = inspection.inspect(tiny_spec)
    assert summary["task"] == "image-classification"
    assert summary["architecture"] == "small-cnn"
    stored = load_file(str(tiny_spec.model))
    assert summary["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert sum(summary["dataset"]["train"].values()) == 240
    assert summary["dataset"]["labels"] == {name: name for name in "01234"}
    assert sum(summary["dataset"]["test"].values()) == 80
    assert list(summary["dataset"]["train"]) == ["0", "1", "2", "3", "4"]
    assert list(summary["downstream"]["train"]) == ["5", "6", "7", "8", "9"]


def test_errors_of_the_model_point_at_it(tiny_spec: JobSpec, tmp_path: Path) -> None:
    tensors = load_file(str(tiny_spec.model))
    (tmp_path / "cut.safetensors").write_bytes(Path(str(tiny_spec.model)).read_bytes()[:-1])
    save_file({**tensors, "head.bias": torch.zeros(9)}, tmp_path / "head.safetensors")
    torch.save(tensors, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.write(str(tiny_spec.model), "model.safetensors")
        archive.writestr("modeling.py", "import os")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.writestr("../x", "")
    config = tiny_spec.config or {}
    for name, code in {
        "cut.safetensors": "size_mismatch", "head.safetensors": "tensors_mismatch", "code.zip": "remote_code_refused",
        "slip.zip": "archive_path_invalid",
    }.items():  # fmt: skip
        refused(changed(tiny_spec, model=tmp_path / name), code, "/model")
    refused(changed(tiny_spec, config=None), "config_missing", "/model")
    refused(changed(tiny_spec, config={**config, "architecture": "x"}), "unsupported_architecture", "/model")
    assert (
        "head.bias"
        in refused(changed(tiny_spec, model=tmp_path / "head.safetensors"), "tensors_mismatch", "/model").message
    )
    with pytest.raises(KnownError) as caught:
        inspection.inspect(changed(tiny_spec, model=tmp_path / "model.pt"))
    assert caught.value.pointer == "/model"


def test_a_damaged_zip_points_at_its_field(tiny_spec: JobSpec, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(str(tiny_spec.model), "model.safetensors")
    blob = bytearray((tmp_path / "m.zip").read_bytes())
    blob[60:90] = b"\xff" * 30
    (tmp_path / "m.zip").write_bytes(blob)
    refused(changed(tiny_spec, model=tmp_path / "m.zip"), "archive_invalid", "/model")


@pytest.mark.parametrize(("field", "pointer"), [("dataset", "/dataset"), ("downstream", "/evaluation/downstream")])
def test_errors_of_data_point_at_it(
    tiny_spec: JobSpec, tmp_path: Path, digits: ImageArrays, field: str, pointer: str
) -> None:
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "t.zip").write_bytes(b"PK\x03\x04 not a zip")
    write_imagefolder(tmp_path / "single.zip", digits.of_classes([3]).take(np.arange(30)))
    few = digits.of_classes([0, 1])
    lone = np.concatenate([np.flatnonzero(few.labels == 0)[:40], np.flatnonzero(few.labels == 1)[:1]])
    write_imagefolder(tmp_path / "lone.zip", few.take(lone))
    for name, code in {
        "text.parquet": "dataset_unusable", "t.zip": "archive_invalid", "single.zip": "dataset_unusable",
        "lone.zip": "dataset_unusable",
    }.items():  # fmt: skip
        refused(changed(tiny_spec, **{field: tmp_path / name}), code, pointer)


def test_data_of_other_classes(tiny_spec: JobSpec) -> None:
    assert tiny_spec.downstream is not None
    error = refused(changed(tiny_spec, dataset=tiny_spec.downstream), "labels_mismatch", "/dataset")
    assert "['5', '6', '7', '8', '9']" in error.message
    config = {**(tiny_spec.config or {}), "label_names": None}
    inspection.inspect(changed(tiny_spec, dataset=tiny_spec.downstream, config=config))  # by position, then


def test_too_little_data(tiny_spec: JobSpec, tmp_path: Path, digits: ImageArrays) -> None:
    part = digits.of_classes([0, 1, 2, 3, 4])
    write_imagefolder(tmp_path / "tiny.zip", part.take(np.arange(10)))
    refused(changed(tiny_spec, dataset=tmp_path / "tiny.zip"), "dataset_unusable", "/dataset")
    write_imagefolder(tmp_path / "d.zip", part.take(np.arange(150)))
    error = refused(changed(tiny_spec, dataset=tmp_path / "d.zip", downstream=None), "dataset_unusable", "/dataset")
    assert "left to evaluate" in error.message
    inspection.inspect(changed(tiny_spec, dataset=tmp_path / "d.zip"))


def test_select_and_hyper_model(tiny_spec: JobSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wish = changed(tiny_spec, evaluation=EvaluationSettings(select="x3"))
    assert "'x3'" in refused(wish, "candidate_unknown", "/evaluation/select").message
    unknown = changed(tiny_spec, nowcast=NowcastSettings(hypermodel="../../etc/passwd"))
    assert "passwd" in refused(unknown, "hypermodel_unknown", "/nowcast/hypermodel").message
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(tmp_path / "gone.safetensors"))
    assert "gone" in refused(tiny_spec, "hypermodel_unknown", "/nowcast/hypermodel").message
    assert set(hypermodels.shipped_hypermodels()) <= {path.stem for path in hypermodels._WEIGHTS.iterdir()}


def test_splits_of_a_job(tiny_spec: JobSpec, tmp_path: Path) -> None:
    task = opened(tiny_spec, tmp_path)
    assert (len(task.d0.labels), len(task.evaluation.labels)) == (240, 80)
    assert len(task.probe_pool.labels) + len(task.probe_test.labels) == 120
    assert np.bincount(task.probe_pool.labels).min() >= 8
    summary = task.summary()
    assert (summary["evaluation_source"], summary["downstream_source"]) == ("test split", "given")
    assert [example["image"] for example in summary["sample"]] == ["8 x 8 L"] * 3
    assert {example["label"] for example in summary["sample"]} <= {"0", "1", "2", "3", "4"}


def test_without_splits_examples_are_held_out(tiny_spec: JobSpec, tmp_path: Path, digits: ImageArrays) -> None:
    part = digits.of_classes([0, 1, 2, 3, 4]).take(np.arange(300))
    write_imagefolder(tmp_path / "d.zip", part)
    evaluation = tiny_spec.evaluation.model_copy(update={"holdout": 0.2})
    task = opened(changed(tiny_spec, dataset=tmp_path / "d.zip", downstream=None, evaluation=evaluation), tmp_path)
    sizes = [len(part.labels) for part in (task.d0, task.evaluation, task.probe_pool, task.probe_test)]
    assert sizes[0] + sizes[1] == 300
    assert 55 <= sizes[1] <= 65
    assert sizes[2] + sizes[3] == sizes[1]
    assert task.summary()["evaluation_source"] == "held out of the training data"
    pixels = [item["pixel_values"].numpy().tobytes() for item in items_of(task.evaluation)]
    kept = {item["pixel_values"].numpy().tobytes() for item in items_of(task.d0)}
    assert kept.isdisjoint(pixels)
    assert [int(item["labels"]) for item in items_of(task.d0)] == task.d0.labels.tolist()


def test_labels_follow_the_model_s_names_not_their_order(tiny_spec: JobSpec, tmp_path: Path) -> None:
    config = {**(tiny_spec.config or {}), "label_names": ["4", "3", "2", "1", "0"]}
    straight, turned = opened(tiny_spec, tmp_path / "a"), opened(changed(tiny_spec, config=config), tmp_path / "b")
    assert np.array_equal(turned.d0.labels, 4 - straight.d0.labels)
    assert [int(turned.d0.items[i]["labels"]) for i in range(240)] == turned.d0.labels.tolist()


def test_scores_are_in_order_and_those_of_the_network(tiny_spec: JobSpec, tmp_path: Path) -> None:
    task = opened(tiny_spec, tmp_path)
    model = task.load(Checkpoint(tmp_path / "inputs" / "model"))
    scores = task.score(model, task.evaluation.items, torch.device("cpu"))
    for index in (0, 17, 79):
        item = task.evaluation.items[index]
        with torch.inference_mode():
            logits = model(item["pixel_values"][None])["logits"]
        assert scores.correct[index] == float(logits.argmax() == item["labels"])
        loss = torch.nn.functional.cross_entropy(logits, item["labels"][None])
        assert scores.loss[index] == pytest.approx(float(loss), abs=1e-5)
    assert scores.correct.mean() > 0.4  # it was trained on these classes
    batches = list(task.inputs(torch.device("cpu"), 64))
    assert sum(len(batch["pixel_values"]) for batch in batches) == 240


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def teststratified_split(share: float) -> None:
    labels = np.repeat(np.arange(3), [2, 10, 100])
    first, second = stratified_split(labels, share, 0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(112))
    for label, count in ((0, 2), (1, 10), (2, 100)):
        assert int((labels[first] == label).sum()) == min(max(1, round(share * count)), count - 1)
    assert np.array_equal(first, stratified_split(labels, share, 0)[0])
    assert not np.array_equal(first, stratified_split(labels, share, 1)[0])
