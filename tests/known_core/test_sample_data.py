"""Sample images, and the imagefolder they are written as."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from known_core.errors import KnownError
from known_core.files import sha256_file
from known_core.sample_data import FASHION_FOLDER, ImageArrays, load_sample, write_imagefolder


def test_digits(digits: ImageArrays) -> None:
    assert digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.labels).min() > 170


@pytest.mark.skipif(not FASHION_FOLDER.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_fashion() -> None:
    fashion = load_sample("fashion")
    assert fashion.images.shape == (60_000, 28, 28)
    assert np.bincount(fashion.labels).tolist() == [6000] * 10


def test_some_classes_are_renumbered_in_the_order_given(digits: ImageArrays) -> None:
    part = digits.of_classes([7, 3])
    assert part.classes == ("7", "3")
    assert set(part.labels.tolist()) == {0, 1}
    assert len(part.labels) == int(np.isin(digits.labels, [7, 3]).sum())
    first = int(np.flatnonzero(np.isin(digits.labels, [7, 3]))[0])
    assert np.array_equal(part.images[0], digits.images[first])
    assert part.classes[part.labels[0]] == str(digits.labels[first])


def test_an_imagefolder_is_read_back(tmp_path: Path, digits: ImageArrays) -> None:
    part = digits.of_classes([1, 2]).take(np.arange(10))
    write_imagefolder(tmp_path / "d.zip", part, part.take(np.arange(3)))
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        names = archive.namelist()
        assert len([name for name in names if name.startswith("train/")]) == 10
        assert len([name for name in names if name.startswith("test/")]) == 3
        pixels = np.asarray(Image.open(io.BytesIO(archive.read(names[4]))))
        assert np.array_equal(pixels, part.images[4])
    again = load_sample(str(tmp_path / "d.zip"))  # in RGB, class by class
    assert again.images.shape == (10, 8, 8, 3)
    assert again.classes == part.classes
    for label in (0, 1):
        assert np.array_equal(again.images[again.labels == label][..., 0], part.images[part.labels == label])


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, digits: ImageArrays) -> None:
    for name in ("a.zip", "b.zip"):
        write_imagefolder(tmp_path / name, digits.take(np.arange(5)))
    assert sha256_file(tmp_path / "a.zip") == sha256_file(tmp_path / "b.zip")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"'cats' \(sample_missing\)"):
        load_sample("cats")
