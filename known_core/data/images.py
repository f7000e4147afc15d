"""Images as a network takes them, decoded within limits."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from known_core.checkpoint.source import Source, is_local
from known_core.data.files import DataFiles, unusable
from known_core.data.folders import FORMATS
from known_core.errors import KnownError

Preprocess = Callable[[list[Image.Image]], Tensor]  # images to (N, C, H, W) float32
_CACHE_BYTES = 1 << 30  # preprocessed images kept in memory up to this size
_MAX_PIXELS = 100_000_000
_HEADERS = 2_000  # images whose headers are read while a job is asked for
# what Pillow itself takes for signs of a broken file, and what its decoders raise
_BROKEN_IMAGE = (OSError, ValueError, EOFError, SyntaxError, IndexError, TypeError, struct.error)


class CachedItems(Dataset[dict[str, Tensor]]):
    """Items made once and kept in memory where they all fit.

    Args:
        count: N.
        make: (n,) indices to tensors of n rows each, by the name of the network's input.
    """

    def __init__(self, count: int, make: Callable[[NDArray[np.int64]], dict[str, Tensor]]) -> None:
        self._make = make
        self._kept: dict[str, Tensor] = {}
        self._cached = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self._cached)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Items of a whole batch at once: torch's DataLoader asks for them this way."""
        batch = self._batch(np.asarray(indices))
        return [{name: rows[place] for name, rows in batch.items()} for place in range(len(indices))]

    def _batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        missing = indices[~self._cached[indices]]
        if not self._kept or len(missing):
            wanted = missing if self._kept else indices
            made = self._make(wanted)
            if not self._kept:
                if sum(rows[0].nbytes for rows in made.values()) * len(self) > _CACHE_BYTES:
                    return made
                self._kept = {name: rows.new_empty(len(self), *rows.shape[1:]) for name, rows in made.items()}
            for name, rows in made.items():
                self._kept[name][wanted] = rows
            self._cached[wanted] = True
        return {name: rows[indices] for name, rows in self._kept.items()}


class LabelledImages(CachedItems):
    """Images and labels as a network takes them.

    Args:
        rows: a datasets.Dataset with a column "image": the path of a file, or the bytes of an image.
        labels: (N,) int64 labels.
        preprocess: images to (N, C, H, W) float32.
    """

    def __init__(self, rows: datasets.Dataset, labels: NDArray[np.int64], preprocess: Preprocess) -> None:
        def make(indices: NDArray[np.int64]) -> dict[str, Tensor]:
            pixels = preprocess(read_images(rows, "image", indices))
            return {"pixel_values": pixels, "labels": torch.from_numpy(labels[indices])}

        super().__init__(len(labels), make)
        self.labels = labels


def check_image_headers(source: Source, files: DataFiles) -> None:
    """Look at the sizes that images of a folder on this machine say they have; of each that is decoded, the job does.

    Raises:
        KnownError: ``image_limit``, ``dataset_unusable``.
    """
    names = [*files.train_split.files, *files.test_split.files]
    if files.format != "imagefolder" or not is_local(source):
        return
    for name in names[:: -(-len(names) // _HEADERS) or 1]:
        with source.open(name) as stream, _opened(stream, name):
            pass


def read_images(rows: datasets.Dataset, column: str, indices: NDArray[np.int64]) -> list[Image.Image]:
    """The images of some rows.

    Raises:
        KnownError: what :func:`read_image` raises.
    """
    values = rows[indices.tolist()][column]
    return [read_image(value, index) for value, index in zip(values, indices.tolist(), strict=True)]


def read_image(value: str | bytes, index: int) -> Image.Image:
    """Decode one image, upright as its EXIF orientation says.

    Raises:
        KnownError: ``image_limit``, ``dataset_unusable``.
    """
    name = "/".join(Path(value).parts[-2:]) if isinstance(value, str) else f"image {index}"
    with (
        Path(value).open("rb") if isinstance(value, str) else io.BytesIO(value) as stream,
        _opened(stream, name) as image,
    ):
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def _opened(stream: BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image whose header is read and whose pixels are not; errors over it are known ones."""
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(stream, formats=tuple(FORMATS.values())) as image,
        ):
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise KnownError("image_limit", f"{name}: {error}", f"Images may have {_MAX_PIXELS} pixels.") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(sorted(set(FORMATS.values())))
        raise unusable(f"{name} is not an image of a known format", f"Use {formats}.") from error
    except _BROKEN_IMAGE as error:
        raise unusable(f"{name} cannot be decoded: {error}", "Remove or repair broken images.") from error
