"""What a person is shown of their data, images with masks, and how classes meet the model's labels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from datasets import ClassLabel, Features, List, Value

from known_core.data import Role, sample_of
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.report import render_markdown
from known_core.tasks.base import match_labels
from known_core.tasks.image_classification import IMAGE, LABEL
from tests.known_core.data.made import CLASSIFIED, TAGGED, inspect, png, read, texts, write, write_as

MASK = Role("mask", "image", ("mask", "annotation"))


def test_the_summary(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"train.csv": "text,label\nt,0\nt,1\nt,1\n", "dev.csv": "text,label\nt,1\n"})
    assert inspect(path).summary() == {
        "format": "csv",
        "columns": {"text": "text", "label": "label"},
        "splits": {"train": "train", "test": "validation"},
        "train_examples": 3,
        "test_examples": 1,
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "train": {"0": 1, "1": 2},
        "test": {"1": 1},
    }


def test_a_sample_of_texts(tmp_path: Path) -> None:
    rows = {"premise": [f"p{n}" for n in range(8)] + ["x" * 300], "hypothesis": ["h"] * 9, "label": [0, 1, 0] * 3}
    files, train, _ = read(write_as("d.parquet", texts(rows, None), tmp_path), tmp_path)
    assert sample_of(train, files, CLASSIFIED) == [
        {"text": "p0", "text_pair": "h", "label": "0"},
        {"text": "p4", "text_pair": "h", "label": "1"},
        {"text": "x" * 200 + "…", "text_pair": "h", "label": "0"},
    ]


def test_a_sample_of_words(tmp_path: Path) -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "PER"]))})
    path = write_as("d.parquet", texts({"tokens": [["Ada", "is"]], "tags": [[1, 0]]}, features), tmp_path)
    files, train, _ = read(path, tmp_path, TAGGED)
    assert sample_of(train, files, TAGGED) == [{"tokens": "Ada is", "tags": "PER O"}]


def test_a_sample_of_images(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"a/1.png": png(1), "b/2.png": png(2, 32, "RGB")})
    files, train, _ = read(path, tmp_path, (IMAGE, LABEL))
    assert sample_of(train, files, (IMAGE, LABEL)) == [
        {"image": "4 x 4 L", "label": "a"}, {"image": "32 x 32 RGB", "label": "b"},
    ]  # fmt: skip


def test_the_sample_in_the_report() -> None:
    """No text of a stranger ends the block it stands in."""
    sample = [{"text": "```\n# Not a heading <b>", "label": "a"}]
    report: dict[str, Any] = {
        "conclusion": "c", "metric": "accuracy", "transfer": {}, "own_task": {}, "forgetting_accuracy": [], "notes": [],
        "hypermodel": {"name": "h"}, "weights_predicted": {}, "inputs": {"sample": sample},
    }  # fmt: skip
    lines = render_markdown(report).splitlines()
    assert '{"text": "```\\n# Not a heading <b>", "label": "a"}' in lines
    assert "# Not a heading" not in [line[:15] for line in lines]
    assert "training examples" not in render_markdown(report | {"inputs": {}})


@pytest.mark.parametrize("names", [
    ["images/1.jpg", "masks/1.png", "images/2.jpg", "masks/2.png"],
    ["train/images/1.png", "train/masks/1.png", "test/images/2.png", "test/masks/2.png"],
    ["images/training/1.png", "annotations/training/1.png", "images/validation/2.png", "annotations/validation/2.png"],
    ["1.png", "labels/1.png", "2.png", "labels/2.png"],
], ids=str)  # fmt: skip
def test_images_with_masks(tmp_path: Path, names: list[str]) -> None:
    root = "d/set" if names[0] == "1.png" else "d"
    path = write(tmp_path / root, {name: png(index) for index, name in enumerate(names)})
    files, train, test = read(path.parent if root == "d/set" else path, tmp_path, (IMAGE, MASK))
    parts = [part for part in (train, test) if part is not None]
    pairs = [(row["image"], row["mask"]) for part in parts for row in part]
    assert [(image.split("/")[-1][0], mask.split("/")[-1][0]) for image, mask in pairs] == [("1", "1"), ("2", "2")]
    assert (files.format, len(parts)) == ("imagefolder", 2 if "2.png" in names[-1] and len(names[-1]) > 13 else 1)
    assert all(Path(image).read_bytes() != Path(mask).read_bytes() for image, mask in pairs)


def test_an_image_without_its_mask(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"images/1.png": png(), "masks/2.png": png()})
    with pytest.raises(KnownError, match=r"images/1\.png has no mask.*\(dataset_unusable\)"):
        inspect(path, (IMAGE, MASK))


def model(names: list[str] | None, count: int | None = None) -> Network:
    return cast(
        Network, SimpleNamespace(label_names=names, num_labels=count if count is not None else len(names or []))
    )


def test_classes_meet_labels(tmp_path: Path) -> None:
    files = inspect(write(tmp_path / "d", {"a.csv": "text,label\nx,good\ny,bad\n"}))
    assert files.classes == ["bad", "good"]
    assert match_labels(files, model(["good", "bad"]), {}).tolist() == [1, 0]
    assert match_labels(files, model(["POS", "NEG"]), {"bad": "NEG", "good": "POS"}).tolist() == [1, 0]
    assert np.array_equal(match_labels(files, model(None, 2), {}), [0, 1])
    for network, renamed, part in (
        (model(["POS", "NEG"]), {}, "['bad', 'good']"),
        (model(["good", "bad"]), {"ugly": "bad"}, "['ugly']"),
        (model(["good", "bad"]), {"good": "best"}, "['best']"),
        (model(None, 3), {}, "2 classes"),
    ):
        with pytest.raises(KnownError, match=r"\(labels_mismatch\)") as caught:
            match_labels(files, network, renamed)
        assert part in caught.value.message
