"""Text classification: transformers sequence classifiers; one text or a pair of them, with a label."""

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role
from known_core.models.base import Network
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, class_scores
from known_core.tasks.image_classification import LABEL
from known_core.tasks.texts import TEXT, TEXT_PAIR, Tokens, encode_texts, labelled


class TextClassification:
    """See :class:`known_core.tasks.base.Task`."""

    name = "text-classification"
    metric = "accuracy"
    new_head = True
    defaults = Defaults(2e-5, 32, 64, (2e-5, 1e-4))

    def network(self, config: dict[str, Any]) -> Network:
        return TransformersNetwork(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "a text classifier")

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (TEXT, TEXT_PAIR, LABEL)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Tokens:
        tokens = Tokens(network, source, max_length)
        parsed = getattr(network, "parsed", None)  # transformers' own config, also of an adapter's base
        if parsed is not None and parsed.pad_token_id is None:  # decoders find the last token of each text by it
            parsed.pad_token_id = tokens.tokenizer.pad_token_id
        return tokens

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Tokens) -> Labelled:
        return labelled(encode_texts(rows, processor), to_model[np.array(rows["label"], dtype=np.int64)])

    def collate(self, processor: Tokens, *, training: bool) -> Collate:
        return processor.pad

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return class_scores(logits, batch["labels"])
