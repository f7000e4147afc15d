"""Images as a network takes them, decoded within limits."""

import io
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from known_core.data.files import unusable
from known_core.data.folders import FORMATS
from known_core.errors import KnownError

Preprocess = Callable[[list[Image.Image]], Tensor]  # images to (N, C, H, W) float32
_CACHE_BYTES = 1 << 30  # preprocessed images kept in memory up to this size
_MAX_PIXELS = 100_000_000
# what Pillow itself takes for signs of a broken file, and what its decoders raise
_BROKEN_IMAGE = (OSError, ValueError, EOFError, SyntaxError, IndexError, TypeError, struct.error)


class LabelledImages(Dataset[dict[str, Tensor]]):
    """Images and labels as a network takes them; preprocessed once and kept in memory where they fit.

    Args:
        rows: a datasets.Dataset with one column, "image": the path of a file, or the bytes of an image.
        labels: (N,) int64 labels.
        preprocess: images to (N, C, H, W) float32.
    """

    def __init__(self, rows: datasets.Dataset, labels: NDArray[np.int64], preprocess: Preprocess) -> None:
        self.labels = labels
        self._rows, self._preprocess = rows, preprocess
        self._pixels: Tensor | None = None
        self._cached = np.zeros(len(labels), dtype=bool)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Items of a whole batch at once: torch's DataLoader asks for them this way."""
        pixels = self._batch(np.asarray(indices))
        return [
            {"pixel_values": image, "labels": torch.tensor(int(self.labels[index]))}
            for image, index in zip(pixels, indices, strict=True)
        ]

    def _batch(self, indices: NDArray[np.int64]) -> Tensor:
        missing = indices[~self._cached[indices]]
        if self._pixels is None or len(missing):
            wanted = missing if self._pixels is not None else indices
            pixels = self._preprocess(self._decode(wanted))
            if self._pixels is None:
                if pixels[0].nbytes * len(self) > _CACHE_BYTES:
                    return pixels
                self._pixels = torch.empty(len(self), *pixels.shape[1:])
            self._pixels[wanted] = pixels
            self._cached[wanted] = True
        return self._pixels[indices]

    def _decode(self, indices: NDArray[np.int64]) -> list[Image.Image]:
        rows = self._rows[indices.tolist()]["image"]
        return [read_image(value, index) for value, index in zip(rows, indices.tolist(), strict=True)]


def read_image(value: str | bytes, index: int) -> Image.Image:
    """Decode one image, upright as its EXIF orientation says."""
    name = "/".join(Path(value).parts[-2:]) if isinstance(value, str) else f"image {index}"
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Path(value).open("rb") if isinstance(value, str) else io.BytesIO(value) as stream,
            Image.open(stream, formats=tuple(FORMATS.values())) as image,
        ):
            image.load()
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise KnownError("image_limit", f"{name}: {error}", f"Images may have {_MAX_PIXELS} pixels.") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(sorted(set(FORMATS.values())))
        raise unusable(f"{name} is not an image of a known format", f"Use {formats}.") from error
    except _BROKEN_IMAGE as error:
        raise unusable(f"{name} cannot be decoded: {error}", "Remove or repair broken images.") from error
