"""Image data sets: what is seen without unpacking, what is read, what is refused."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from known_core.checkpoint.source import open_source, unpack
from known_core.data import DataFiles, inspect_data, read_data
from known_core.data.images import LabelledImages, Preprocess
from known_core.errors import KnownError
from known_core.sample_data import ImageArrays, write_imagefolder
from known_core.spec import DataSettings
from known_core.tasks.image_classification import IMAGE, LABEL


def png(value: int = 0, size: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (size, size), value).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def inspect(path: Path) -> DataFiles:
    return inspect_data(open_source(path, single_file_name="data.parquet"), (IMAGE, LABEL), DataSettings())


def grey(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))[None] for image in images])


def load(path: Path, tmp_path: Path) -> tuple[DataFiles, LabelledImages, LabelledImages | None]:
    """Unpack and read, as a job does."""
    unpack(path, tmp_path / "unpacked", single_file_name="data.parquet")
    files = inspect(tmp_path / "unpacked")
    return files, *load_images(tmp_path / "unpacked", files, tmp_path / "cache")


def load_images(
    folder: Path, files: DataFiles, cache: Path, preprocess: Preprocess = grey
) -> tuple[LabelledImages, LabelledImages | None]:
    train, test = (
        None if rows is None else LabelledImages(rows, np.array(rows["label"]), preprocess)
        for rows in read_data(folder, files, (IMAGE, LABEL), cache)
    )
    assert train is not None
    return train, test


def contents(files: DataFiles, part: LabelledImages) -> list[tuple[str, int]]:
    """Class name and first pixel of every item."""
    items = [part[index] for index in range(len(part))]
    return sorted((files.classes[int(item["labels"])], int(item["pixel_values"][0, 0, 0])) for item in items)


def table(labels: list[Any], images: list[bytes] | None = None, **names: str) -> pa.Table:
    images = images or [png(index) for index in range(len(labels))]
    return pa.table({
        names.get("image", "image"): [{"bytes": image, "path": None} for image in images],
        names.get("label", "label"): labels,
    })  # fmt: skip


def test_an_imagefolder_with_splits(tmp_path: Path, digits: ImageArrays) -> None:
    part = digits.of_classes([3, 8]).take(np.arange(12))
    write_imagefolder(tmp_path / "d.zip", part, part.take(np.arange(5)))
    expected = {name: int((part.labels == label).sum()) for label, name in enumerate(part.classes)}
    seen = inspect(tmp_path / "d.zip")
    assert (seen.format, seen.classes, seen.train) == ("imagefolder", ["3", "8"], expected)
    assert sum(seen.test.values()) == 5
    files, train, test = load(tmp_path / "d.zip", tmp_path)
    assert test is not None
    assert (len(train), len(test)) == (12, 5)
    pixels = {(part.classes[label], image.tobytes()) for label, image in zip(part.labels, part.images, strict=True)}
    for index in range(12):
        item = train[index]
        image = item["pixel_values"][0].to(torch.uint8).numpy().tobytes()
        assert (files.classes[int(item["labels"])], image) in pixels


def test_an_imagefolder_without_splits(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"dog/a.png": png(1), "dog/b.PNG": png(2), "cat/c.png": png(3), "readme.txt": b"x"})
    seen = inspect(root)
    assert (seen.classes, seen.train, seen.test) == (["cat", "dog"], {"cat": 1, "dog": 2}, {})
    files, train, test = load(root, tmp_path)
    assert test is None
    assert contents(files, train) == [("cat", 3), ("dog", 1), ("dog", 2)]


@pytest.mark.parametrize("split", ["test", "val", "validation", "valid", "Test"])
def test_names_of_a_test_split(tmp_path: Path, split: str) -> None:
    root = write(tmp_path / "d", {"train/a/1.png": png(1), "train/b/2.png": png(2), f"{split}/b/3.png": png(3)})
    assert inspect(root).test == {"b": 1}
    files, train, test = load(root, tmp_path)
    assert test is not None
    assert (contents(files, train), contents(files, test)) == ([("a", 1), ("b", 2)], [("b", 3)])


def test_classes_named_like_a_split_stay_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"test/1.png": png(), "other/2.png": png()})
    assert (inspect(root).train, inspect(root).test) == ({"other": 1, "test": 1}, {})


@pytest.mark.parametrize(
    "files",
    [
        {"train/a/1.png": 1, "train/deep/b/2.png": 2},
        {"a/img[1].png": 1, "b/2.png": 2},
        {"a[0-9]/1.png": 1, "b/2.png": 2},
        {"a/star*.png": 1, "a/starry.png": 2, "b/2.png": 3},
        {"a/.hidden.png": 1, "b/2.png": 2},
        {"a b/ü 1.png": 1, "ß/2.png": 2},
    ],
    ids=["depths", "brackets", "bracketed class", "star", "hidden", "spaces"],
)
def test_what_is_counted_is_what_is_read(tmp_path: Path, files: dict[str, int]) -> None:
    root = write(tmp_path / "d", {name: png(value) for name, value in files.items()})
    seen, train, _ = load(root, tmp_path)
    assert contents(seen, train) == sorted((Path(name).parent.name, value) for name, value in files.items())


@pytest.mark.parametrize(("files", "code", "part"), [
    ({}, "dataset_unusable", "no examples"),
    ({"readme.txt": b"x"}, "dataset_unusable", "no examples"),
    ({"1.png": png(), "2.png": png()}, "dataset_unusable", "no examples"),
    ({"cat/1.png": png(), "cat/2.png": png()}, "dataset_unusable", "'cat'"),
    ({"train/a/1.png": b"", "train/b/1.png": b"", "test/c/1.png": b""}, "dataset_unusable", "['c']"),
    ({"a/1.png": b"", "b/1.png": b"", "load.py": b""}, "dataset_script_refused", "load.py"),
    ({"a/1.png": b"", "b/1.png": b"", "sub/x.py": b""}, "dataset_script_refused", "sub/x.py"),
])  # fmt: skip
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, bytes], code: str, part: str) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(KnownError, match=rf"\({code}\)") as caught:
        inspect(write(tmp_path / "d", files))
    assert part in caught.value.message


def test_parquet_with_integers(tmp_path: Path) -> None:
    pq.write_table(table([2, 0, 2, 1]), tmp_path / "d.parquet")
    seen = inspect(tmp_path / "d.parquet")
    assert (seen.format, seen.classes, seen.train) == ("parquet", ["0", "1", "2"], {"0": 1, "1": 1, "2": 2})
    files, train, test = load(tmp_path / "d.parquet", tmp_path)
    assert test is None
    assert train.labels.tolist() == [2, 0, 2, 1]
    assert contents(files, train) == [("0", 1), ("1", 3), ("2", 0), ("2", 2)]


def test_parquet_with_strings_and_other_column_names(tmp_path: Path) -> None:
    pq.write_table(table(["dog", "cat", "dog"], image="img", label="labels"), tmp_path / "d.parquet")
    files, train, _ = load(tmp_path / "d.parquet", tmp_path)
    assert files.classes == ["cat", "dog"]
    assert contents(files, train) == [("cat", 1), ("dog", 0), ("dog", 2)]


def test_parquet_of_the_hugging_face_library(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant", "bee"])}
    )
    rows = {"image": [Image.new("L", (4, 4), value) for value in (5, 6, 7)], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d.parquet")
    seen = inspect(tmp_path / "d.parquet")
    assert seen.classes == ["zebra", "ant", "bee"]
    assert seen.train == {"ant": 1, "zebra": 2}
    files, train, _ = load(tmp_path / "d.parquet", tmp_path)
    assert contents(files, train) == [("ant", 6), ("zebra", 5), ("zebra", 7)]
    assert train.labels.tolist() == [0, 1, 0]


def test_parquet_splits_by_file_name(tmp_path: Path) -> None:
    root = tmp_path / "d"
    (root / "data").mkdir(parents=True)
    pq.write_table(table(["a", "b"]), root / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table(["b"], [png(9)]), root / "data" / "test-00000-of-00001.parquet")
    files, train, test = load(root, tmp_path)
    assert test is not None
    assert (files.train, files.test) == ({"a": 1, "b": 1}, {"b": 1})
    assert (contents(files, train), contents(files, test)) == ([("a", 0), ("b", 1)], [("b", 9)])


@pytest.mark.parametrize("name", ["latest.parquet", "interval.parquet", "retrieval-00000-of-00001.parquet"])
def test_names_that_hold_the_word_by_chance_are_training_data(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(table(["a", "b"]), tmp_path / "d" / name)
    assert inspect(tmp_path / "d").train == {"a": 1, "b": 1}


@pytest.mark.parametrize(("labels", "code"), [
    ([0, 1, -1], "label_out_of_range"), ([0, 1, 10**9], "label_out_of_range"), ([0, None], "dataset_unusable"),
    ([0.5, 1.5], "dataset_unusable"), ([True, False], "dataset_unusable"), ([0, 0], "dataset_unusable"),
    ([], "dataset_unusable"), (["a", "a"], "dataset_unusable"), ([[0], [1]], "dataset_unusable"),
    ([{"a": 1}, {"a": 2}], "dataset_unusable"), ([b"a", b"b"], "dataset_unusable"),
], ids=str)  # fmt: skip
def test_labels_that_are_refused(tmp_path: Path, labels: list[Any], code: str) -> None:
    pq.write_table(table(labels), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        inspect(tmp_path / "d.parquet")


@pytest.mark.parametrize(("features", "code"), [
    ({"label": {"names": ["a", "b"], "_type": "ClassLabel"}}, "label_out_of_range"),  # the data has a third
    ("not an object", "dataset_unusable"), ({"label": "x"}, "dataset_unusable"),
    ({"label": {"names": 7}}, "dataset_unusable"), ({"label": {"names": ["a", "a", "a"]}}, "dataset_unusable"),
], ids=str)  # fmt: skip
def test_hostile_hugging_face_metadata(tmp_path: Path, features: Any, code: str) -> None:
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table([0, 1, 2]).replace_schema_metadata(metadata), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        inspect(tmp_path / "d.parquet")


def test_hugging_face_metadata_that_is_not_json(tmp_path: Path) -> None:
    pq.write_table(table([0, 1]).replace_schema_metadata({b"huggingface": b"{"}), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        inspect(tmp_path / "d.parquet")


def _cut(blob: bytes) -> bytes:
    return blob[:-20] + blob[-8:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blob: b"",
        lambda blob: b"some text",
        lambda blob: blob[:100],
        _cut,
        lambda blob: blob[:-60] + b"\xff" * 40 + blob[-20:],
    ],
    ids=["empty", "text", "truncated", "footer cut", "footer overwritten"],
)
def test_broken_parquet(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    pq.write_table(table([0, 1]), tmp_path / "d.parquet")
    (tmp_path / "d.parquet").write_bytes(spoil((tmp_path / "d.parquet").read_bytes()))
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        inspect(tmp_path / "d.parquet")


def test_other_columns(tmp_path: Path) -> None:
    pq.write_table(table([0, 1], image="scan", label="kind"), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=r"'scan'.*\(dataset_unusable\)"):
        inspect(tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet", single_file_name="data.parquet")
    columns = {"image": "scan", "label": "kind"}
    files = inspect_data(source, (IMAGE, LABEL), DataSettings(columns=columns))
    assert (files.columns, files.train) == ({"image": "scan.bytes", "label": "kind"}, {"0": 1, "1": 1})
    with pytest.raises(KnownError, match=r"no column 'x'.*\(dataset_unusable\)"):
        inspect_data(source, (IMAGE, LABEL), DataSettings(columns={"image": "x"}))


def test_an_image_column_without_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2, 3], "label": [0, 1, 0]}), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        load(tmp_path / "d.parquet", tmp_path)[1][0]


@pytest.mark.parametrize("column", ["string", "struct"])
def test_parquet_cannot_name_files_of_the_server(tmp_path: Path, column: str) -> None:
    """An image given as a path, not as bytes, would be opened by the datasets library: any file, any URL."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(42))
    paths: list[Any] = [str(secret)] * 2
    if column == "struct":
        paths = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": paths, "label": [0, 1]}), tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        load(tmp_path / "d.parquet", tmp_path)[1][0]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # datasets leaves the file to the collector
@pytest.mark.parametrize(
    "data", [png()[:40], png(size=64)[:-30], b"", b"not an image"], ids=["header", "cut", "empty", "text"]
)
def test_a_broken_image(tmp_path: Path, data: bytes) -> None:
    root = write(tmp_path / "d", {"a/1.png": data, "b/2.png": png()})
    _, train, _ = load(root, tmp_path)
    broken = train.labels.tolist().index(0)
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        train[broken]
    assert train[1 - broken]["pixel_values"].shape == (1, 4, 4)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [60_000, 11_000])
def test_a_decompression_bomb(tmp_path: Path, side: int) -> None:
    root = write(tmp_path / "d", {"a/1.png": bomb(side), "b/2.png": bomb(side)})
    _, train, _ = load(root, tmp_path)
    with pytest.raises(KnownError, match=r"\(image_limit\)"):
        train[0]


def test_batches_cache_and_order(tmp_path: Path) -> None:
    """Items are decoded once, and stay the same in any order and company."""
    root = write(tmp_path / "d", {f"{'ab'[value % 2]}/{value:02d}.png": png(value) for value in range(10)})
    calls: list[int] = []

    def counted(images: list[Image.Image]) -> Tensor:
        calls.append(len(images))
        return grey(images)

    files = inspect(root)
    train, _ = load_images(root, files, tmp_path / "cache", counted)
    first = [train[index]["pixel_values"].clone() for index in (3, 1)]
    batch = train.__getitems__([1, 7, 3, 3])
    again = [train[index]["pixel_values"] for index in (3, 1)]
    assert all(torch.equal(old, new) for old, new in zip(first, again, strict=True))
    assert [torch.equal(batch[index]["pixel_values"], first[0]) for index in (2, 3)] == [True, True]
    assert calls == [1, 1, 1]
    assert sorted(int(item["pixel_values"][0, 0, 0]) for item in train.__getitems__(list(range(10)))) == list(range(10))


def test_sets_too_large_for_memory_are_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("known_core.data.images._CACHE_BYTES", 10)
    root = write(tmp_path / "d", {"a/1.png": png(1), "b/2.png": png(2)})
    files, train, _ = load(root, tmp_path)
    assert contents(files, train) == contents(files, train) == [("a", 1), ("b", 2)]
