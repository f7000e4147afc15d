"""Feature extraction with a given head: transformers encoders of texts or images under a linear head that stays."""

from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import Source
from known_core.data.files import Role
from known_core.data.images import LabelledImages
from known_core.models.base import Network
from known_core.models.features import FeatureNetwork, fit_head, read_head
from known_core.models.processors import image_preprocessor
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, class_scores, stack, stack_or_double
from known_core.tasks.image_classification import IMAGE, LABEL
from known_core.tasks.texts import TEXT, TEXT_PAIR, Tokens, encode_texts, labelled


class FeatureExtraction:
    """See :class:`known_core.tasks.base.Task`. The head is beside the weights, or fitted on D_0 once."""

    name = "feature-extraction"
    metric = "accuracy"
    new_head = True
    defaults = Defaults(2e-5, 32, 64, (1e-4, 1e-3))

    def network(self, config: dict[str, Any]) -> Network:
        return FeatureNetwork(config)

    def roles(self, network: Network) -> tuple[Role, ...]:
        assert isinstance(network, FeatureNetwork)
        return (TEXT, TEXT_PAIR, LABEL) if network.takes == "input_ids" else (IMAGE, LABEL)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Any:
        assert isinstance(network, FeatureNetwork)
        if (head := read_head(source)) is not None:
            network.take_head(head)
        if network.takes == "input_ids":
            return Tokens(network, source, max_length)
        return image_preprocessor(network, source)

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Any) -> Labelled:
        labels = to_model[np.array(rows["label"], dtype=np.int64)]
        if isinstance(processor, Tokens):
            return labelled(encode_texts(rows, processor), labels)
        return Labelled(LabelledImages(rows, labels, processor), labels)

    def collate(self, processor: Any, *, training: bool) -> Collate:
        if isinstance(processor, Tokens):
            return processor.pad
        return stack_or_double if training else stack

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return class_scores(logits, batch["labels"])

    def fit(
        self, network: Network, start: Checkpoint, batches: Iterable[Batch], classes: int, device: torch.device
    ) -> dict[str, Tensor]:
        """The head, by multinomial logistic regression on the features that the given weights make of D_0."""
        assert isinstance(network, FeatureNetwork)
        model = network.load_bare(start).to(device).eval()
        features, labels = [], []
        with torch.no_grad():
            for batch in batches:
                labels.append(batch["labels"].cpu())
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                features.append(model.features(**inputs).float().cpu())
        return fit_head(torch.cat(features), torch.cat(labels), classes)
