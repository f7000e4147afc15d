"""Semantic segmentation: transformers segmenters; images with a mask, the class of each pixel."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role, unusable
from known_core.data.images import CachedItems, Preprocess, read_images
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.models.processors import Masks, image_and_mask_preprocessor
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, stack, stack_or_double
from known_core.tasks.image_classification import IMAGE

MASK = Role("mask", "image", ("mask", "label", "annotation", "segmentation_map", "labels", "seg"))
_IGNORED = 255  # pixels without a class, in transformers as in the data sets


@dataclass(frozen=True)
class Processor:
    """The checkpoint's own, for images and for masks; ``reduce``: 0 is no class, and classes are numbered from 1 on."""

    images: Preprocess
    masks: Masks
    reduce: bool

    def classes_of(self, mask: Image.Image, row: int) -> NDArray[np.uint8]:
        """The class of each pixel, (H, W)."""
        pixels = np.asarray(mask)
        if pixels.ndim != 2 or pixels.dtype.kind not in "bui":
            raise unusable(
                f"mask {row} is an image of mode {mask.mode}, not of one number a pixel",
                "Save masks with a single channel, such as PNG of mode L or P.",
            )
        if pixels.max(initial=0) > _IGNORED or pixels.min(initial=0) < 0:
            raise KnownError(
                "label_out_of_range",
                f"mask {row} has pixels from {pixels.min()} to {pixels.max()}",
                f"Number classes from 0 to 254; {_IGNORED} is ignored.",
            )
        classes = pixels.astype(np.uint8)
        return np.where(classes == 0, _IGNORED, classes - 1 + (classes == _IGNORED)) if self.reduce else classes


class SemanticSegmentation:
    """See :class:`known_core.tasks.base.Task`."""

    name = "semantic-segmentation"
    metric = "mean IoU"
    new_head = True
    defaults = Defaults(6e-5, 8, 8, (1e-4, 1e-3))  # SegFormer's learning rate (Xie et al. 2021)

    def network(self, config: dict[str, Any]) -> Network:
        return TransformersNetwork(config, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, "a segmenter")

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (IMAGE, MASK)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Processor:
        return Processor(*image_and_mask_preprocessor(network, source))

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Processor) -> Labelled:
        limit, largest = len(to_model) or _IGNORED, 0
        for row in range(len(rows)):
            mask = processor.classes_of(read_images(rows, "mask", np.array([row]))[0], row)
            largest = max(largest, int(mask[mask != _IGNORED].max(initial=0)))
            if largest >= limit:
                raise KnownError(
                    "label_out_of_range",
                    f"mask {row} has the class {largest}; the model's classes are 0 to {limit - 1}",
                    f"Number the classes as the model does; {_IGNORED} is ignored.",
                )

        def make(indices: NDArray[np.int64]) -> dict[str, Tensor]:
            read = zip(read_images(rows, "mask", indices), indices.tolist(), strict=True)
            return {
                "pixel_values": processor.images(read_images(rows, "image", indices)),
                "labels": processor.masks([processor.classes_of(mask, row) for mask, row in read]),
            }

        return Labelled(CachedItems(len(rows), make), np.zeros(len(rows), dtype=np.int64), max(2, largest + 1))

    def collate(self, processor: Processor, *, training: bool) -> Collate:
        return stack_or_double if training else stack

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        logits = interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        losses = cross_entropy(logits, labels, reduction="none", ignore_index=_IGNORED).flatten(1)
        counted = (labels != _IGNORED).flatten(1).sum(1).clamp(min=1)
        return mean_iou(logits.argmax(1), labels, logits.shape[1]), losses.sum(1) / counted


def mean_iou(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Intersection over union, the mean over the classes that an image has in its label or in the prediction.

    Args:
        predicted: (N, H, W) classes. labels: (N, H, W), 255 where nothing counts.

    Returns:
        (N,); 0 for an image where nothing counts.
    """
    ious = []
    for one, truth in zip(predicted, labels, strict=True):
        counts = truth != _IGNORED
        found, right = (torch.bincount(part[counts], minlength=classes) for part in (one, truth))
        both = torch.bincount(truth[counts & (one == truth)], minlength=classes)
        union = found + right - both
        ious.append(
            (both[union > 0] / union[union > 0]).mean() if union.any() else union.new_zeros((), dtype=torch.float)
        )
    return torch.stack(ious)
