"""Token classification: transformers token classifiers; words with a tag each, such as named entities."""

from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role, unusable
from known_core.models.base import Network
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Items, Labelled, token_scores
from known_core.tasks.texts import Tokens

WORDS = Role("tokens", "words", ("tokens", "words"))
TAGS = Role("tags", "tags", ("ner_tags", "tags", "pos_tags", "labels"))
_IGNORED = -100  # what torch's cross-entropy leaves out


class TokenClassification:
    """See :class:`known_core.tasks.base.Task`. A word's first token carries its tag."""

    name = "token-classification"
    metric = "token accuracy"
    new_head = True
    defaults = Defaults(2e-5, 32, 64, (2e-5, 1e-4))

    def network(self, config: dict[str, Any]) -> Network:
        return TransformersNetwork(config, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "a token classifier")

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (WORDS, TAGS)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Tokens:
        return Tokens(network, source, max_length)

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Tokens) -> Labelled:
        items: list[Batch] = []
        for number, row in enumerate(rows):
            if len(row["tokens"]) != len(row["tags"]):
                raise unusable(
                    f"row {number} has {len(row['tokens'])} words and {len(row['tags'])} tags", "Give each word a tag."
                )
            encoded = processor.tokenizer(
                row["tokens"], is_split_into_words=True, truncation=True, max_length=processor.max_length
            )
            words, labels = encoded.word_ids(0), []
            for before, word in zip([None, *words], words, strict=False):
                labels.append(int(to_model[row["tags"][word]]) if word is not None and word != before else _IGNORED)
            item = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}
            items.append({name: torch.tensor(values, dtype=torch.int64) for name, values in item.items()})
        return Labelled(Items(items), np.zeros(len(items), dtype=np.int64))

    def collate(self, processor: Tokens, *, training: bool) -> Collate:
        return partial(processor.pad, label_padding=_IGNORED)

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return token_scores(logits, batch["labels"])
