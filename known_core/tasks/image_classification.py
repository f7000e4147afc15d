"""Image classification: transformers, timm, torchvision and registered classifiers; images with a label."""

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role
from known_core.data.images import LabelledImages, Preprocess
from known_core.models.base import Network
from known_core.models.opening import image_classifier_of
from known_core.models.processors import image_preprocessor
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, class_scores, stack, stack_or_double

IMAGE = Role("image", "image", ("image", "img", "pixel_values", "picture"))
LABEL = Role("label", "label", ("label", "labels", "fine_label", "class", "target", "category"))


class ImageClassification:
    """See :class:`known_core.tasks.base.Task`."""

    name = "image-classification"
    metric = "accuracy"
    new_head = True
    defaults = Defaults(1e-4, 64, 256, (1e-3, 3e-3))

    def network(self, config: dict[str, Any]) -> Network:
        return image_classifier_of(config) or TransformersNetwork(
            config, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "an image classifier"
        )

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (IMAGE, LABEL)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Preprocess:
        return image_preprocessor(network, source)

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Preprocess) -> Labelled:
        labels = to_model[np.array(rows["label"], dtype=np.int64)]
        return Labelled(LabelledImages(rows, labels, processor), labels)

    def collate(self, processor: Preprocess, *, training: bool) -> Collate:
        return stack_or_double if training else stack

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return class_scores(logits, batch["labels"])
