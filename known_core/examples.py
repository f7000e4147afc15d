"""Examples in memory, for meta-training and the benchmark: named inputs and labels, augmented batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import Dataset

from known_core.sample_data import ImageArrays
from known_core.sample_text import TextArrays

_SHIFT = 2  # pixels an augmented image moves at most, each way


@dataclass(frozen=True)
class Examples(Dataset[dict[str, Tensor]]):
    """Inputs by the name the network's forward gives them, (N, ...), and labels (N,) int64.

    Images are kept as uint8 and read as float32 from -1 to 1. With ``augment`` each read of a training batch shifts
    images by up to two pixels, and mirrors them where ``mirror`` says that a mirrored image keeps its class. The draw
    is torch's global generator, which the Trainer seeds.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    augment: bool = False
    mirror: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """A batch at once (torch.utils.data calls this where it is there)."""
        batch = self._read(torch.as_tensor(indices))
        if self.augment and "pixel_values" in batch:
            batch["pixel_values"] = _augment(batch["pixel_values"], self.mirror)
        batch["labels"] = self.labels[torch.as_tensor(indices)]
        return [{name: values[row] for name, values in batch.items()} for row in range(len(indices))]

    def take(self, indices: NDArray[np.int64] | Tensor) -> "Examples":
        chosen = torch.as_tensor(indices)
        return replace(self, inputs={k: v[chosen] for k, v in self.inputs.items()}, labels=self.labels[chosen])

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """The inputs alone, in order, never augmented."""
        for begin in range(0, len(self), size):
            yield self._read(torch.arange(begin, min(begin + size, len(self))))

    def _read(self, indices: Tensor) -> dict[str, Tensor]:
        chosen = {name: values[indices] for name, values in self.inputs.items()}
        return {
            name: values.float().div(127.5).sub(1) if values.dtype == torch.uint8 else values
            for name, values in chosen.items()
        }


def image_examples(arrays: ImageArrays, size: int, *, augment: bool = False) -> Examples:
    """Images resized to ``size`` pixels a side; colour images may be mirrored, grey ones (digits, clothes) may not."""
    pixels = torch.from_numpy(np.array(arrays.images))  # a copy: a memory map is read-only
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if pixels.shape[-1] != size:
        pixels = interpolate(pixels.float(), size=(size, size), mode="bilinear").round().to(torch.uint8)
    return Examples(
        {"pixel_values": pixels.contiguous()}, torch.from_numpy(arrays.labels), augment, mirror=pixels.shape[1] == 3
    )


def text_examples(arrays: TextArrays) -> Examples:
    tokens = torch.from_numpy(arrays.tokens)
    return Examples(
        {"input_ids": tokens, "attention_mask": (tokens != 0).to(torch.int64)}, torch.from_numpy(arrays.labels)
    )


def _augment(images: Tensor, mirror: bool) -> Tensor:
    count, _, height, width = images.shape
    if mirror:
        images = torch.where((torch.rand(count) < 0.5)[:, None, None, None], images.flip(3), images)
    rows, columns = torch.randint(0, 2 * _SHIFT + 1, (2, count))
    padded = pad(images, (_SHIFT,) * 4).permute(0, 2, 3, 1)  # channels last, so that an index picks whole pixels
    example = torch.arange(count)[:, None, None]
    down, across = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    return padded[example, rows[:, None, None] + down, columns[:, None, None] + across].permute(0, 3, 1, 2).contiguous()
