"""Semantic segmentation: masks through the checkpoint's own processor, mean IoU, whole jobs."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import cross_entropy

from known_core import inspection
from known_core.checkpoint.source import FolderSource
from known_core.errors import KnownError
from known_core.models.config import read_config
from known_core.sample_data import ImageArrays
from known_core.spec import JobSpec
from known_core.tasks import TASKS
from known_core.tasks.semantic_segmentation import Processor, SemanticSegmentation, mean_iou
from tests.known_core.tasks import tiny
from tests.known_core.tasks.test_jobs import moved, run_job

TASK = SemanticSegmentation()


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


def processor_of(folder: Path) -> Processor:
    source = FolderSource(folder)
    return TASK.processor(TASK.network(read_config(source, None)), source, None)


@pytest.mark.parametrize("name", [
    "segformer", pytest.param("beit", marks=pytest.mark.slow), pytest.param("mobilenet_v2", marks=pytest.mark.slow)
])  # fmt: skip
def test_segmenter(digits: ImageArrays, tmp_path: Path, name: str) -> None:
    model = tiny.save_segmenter(tmp_path / "model", name)
    data = tiny.masked_images(digits, tmp_path / "data.parquet")
    downstream = tiny.masked_images(digits, tmp_path / "downstream.parquet", classes=5)
    candidate, report = run_job(tmp_path, model=model, dataset=data, downstream=downstream)
    assert (report["task"], report["metric"], report["library"]) == (
        "semantic-segmentation",
        "mean IoU",
        "transformers",
    )
    assert 0 <= report["own_task"]["x2"]["accuracy"] <= 1
    assert moved(model / "model.safetensors", candidate / "model.safetensors")
    network: Any = transformers.AutoModelForSemanticSegmentation.from_pretrained(candidate)
    assert network.eval()(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape[:2] == (1, 3)


def test_folders_of_images_and_masks(digits: ImageArrays, tmp_path: Path) -> None:
    model = tiny.save_segmenter(tmp_path / "model", "segformer")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for index, image in enumerate(digits.images[:60]):
            square = np.squeeze(image)
            split = "train" if index < 40 else "test"
            for kind, pixels in (("images", square), ("masks", (square > 128).astype(np.uint8))):
                with archive.open(f"{split}/{kind}/{index}.png", "w") as file:
                    Image.fromarray(pixels).save(file, "png")
    _, report = run_job(tmp_path, model=model, dataset=tmp_path / "data.zip")
    assert report["inputs"]["dataset"]["format"] == "imagefolder"
    assert report["inputs"]["evaluation_examples"] == 20


def test_masks_follow_the_geometry_of_images_without_mixing_classes(tmp_path: Path) -> None:
    """As Segformer's own processor does with segmentation_maps; BEiT's in transformers 5 would mix classes."""
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:, 10:], mask[:3], mask[10:12] = 1, 255, 2
    for name in ("segformer", "beit"):
        processor = processor_of(tiny.save_segmenter(tmp_path / name, name))
        labels = processor.masks([mask])
        assert labels.shape == (1, 16, 16)
        assert set(labels.flatten().tolist()) <= {0, 1, 2, 255}
    own: Any = transformers.SegformerImageProcessor.from_pretrained(tmp_path / "segformer")
    theirs = own([Image.new("RGB", (30, 20))], segmentation_maps=[mask], return_tensors="pt")["labels"]
    assert torch.equal(processor_of(tmp_path / "segformer").masks([mask]), theirs)


def test_processors_that_take_0_for_background(tmp_path: Path) -> None:
    processor = processor_of(tiny.save_segmenter(tmp_path / "model", "segformer", do_reduce_labels=True))
    mask = Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8))
    assert processor.classes_of(mask, 0).tolist() == [[255, 0], [1, 255]]


@pytest.mark.parametrize(("mask", "code"), [
    (Image.new("RGB", (4, 4)), "dataset_unusable"),
    (Image.new("F", (4, 4)), "dataset_unusable"),
    (Image.fromarray(np.full((4, 4), 300, dtype=np.int32)), "label_out_of_range"),
    (Image.fromarray(np.full((4, 4), -1, dtype=np.int32)), "label_out_of_range"),
], ids=["RGB", "F", "300", "-1"])  # fmt: skip
def test_masks_that_are_refused(tmp_path: Path, mask: Image.Image, code: str) -> None:
    processor = processor_of(tiny.save_segmenter(tmp_path / "model", "segformer"))
    with pytest.raises(KnownError, match=rf"mask 7 .*\({code}\)"):
        processor.classes_of(mask, 7)
    for kept in (Image.new("P", (4, 4), 9), Image.new("L", (4, 4), 9), Image.new("I", (4, 4), 9)):
        assert processor.classes_of(kept, 0).tolist() == [[9] * 4] * 4


def test_a_class_that_the_head_lacks(digits: ImageArrays, tmp_path: Path) -> None:
    model = tiny.save_segmenter(tmp_path / "model", "segformer")
    data = tiny.masked_images(digits, tmp_path / "data.parquet", shift=1)
    with pytest.raises(KnownError, match=r"the class 3; the model's classes are 0 to 2.*\(label_out_of_range\)"):
        run_job(tmp_path, model=model, dataset=data)


def test_an_image_without_a_mask(digits: ImageArrays, tmp_path: Path) -> None:
    model = tiny.save_segmenter(tmp_path / "model", "segformer")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("images/a.png", b"")
        archive.writestr("masks/b.png", b"")
    with pytest.raises(KnownError, match=r"a\.png has no mask.*\(dataset_unusable\)"):
        run_job(tmp_path, model=model, dataset=tmp_path / "data.zip")


def test_mean_iou_by_hand() -> None:
    labels = torch.tensor([[[0, 0], [1, 255]], [[255, 255], [255, 255]]])
    predicted = torch.tensor([[[0, 1], [1, 2]], [[0, 1], [2, 0]]])
    # class 0: 1 of 2; class 1: 1 of 2; class 2 only where nothing counts
    assert mean_iou(predicted, labels, 3).tolist() == [0.5, 0.0]
    assert mean_iou(labels.clamp(max=2), labels, 3).tolist() == [1.0, 0.0]


def test_measure_upsamples_the_logits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    _, loss = TASK.measure(logits, {"labels": labels})
    large = torch.nn.functional.interpolate(logits, (8, 8), mode="bilinear")
    torch.testing.assert_close(loss.mean(), cross_entropy(large, labels))


def test_the_task_is_inferred(digits: ImageArrays, tmp_path: Path) -> None:
    model = tiny.save_segmenter(tmp_path / "model", "segformer")
    data = tiny.masked_images(digits, tmp_path / "data.parquet")
    summary = inspection.inspect(JobSpec(model=model, dataset=data))
    assert summary["task"] == TASK.name
    assert TASKS[TASK.name].metric == summary["metric"]
    assert summary["dataset"]["columns"] == {"image": "image.bytes", "mask": "mask.bytes"}
