"""Masked language modelling: transformers encoders; text in blocks, 15 % of the tokens hidden (Devlin et al. 2019)."""

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import DataCollatorForLanguageModeling
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, token_scores
from known_core.tasks.texts import TEXT, Tokens, blocks

_EVALUATION_SEED = 0  # every candidate is asked for the same tokens


class MaskedLM:
    """See :class:`known_core.tasks.base.Task`."""

    name = "masked-lm"
    metric = "masked-token accuracy"
    new_head = False
    defaults = Defaults(5e-5, 16, 8, (2e-5, 1e-4))

    def network(self, config: dict[str, Any]) -> Network:
        return TransformersNetwork(config, MODEL_FOR_MASKED_LM_MAPPING_NAMES, "a masked language model", labels=False)

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (TEXT,)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Tokens:
        tokens = Tokens(network, source, max_length)
        if tokens.tokenizer.mask_token is None:
            raise KnownError("processor_invalid", "the tokenizer has no mask token", "Save one that has.")
        return tokens

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Tokens) -> Labelled:
        return blocks(rows, processor)

    def collate(self, processor: Tokens, *, training: bool) -> Collate:
        masking = DataCollatorForLanguageModeling(processor.tokenizer, seed=None if training else _EVALUATION_SEED)

        def collate(items: list[Any]) -> Batch:
            inputs = [{name: item[name] for name in ("input_ids", "attention_mask")} for item in items]
            batch: Batch = dict(masking(inputs))
            return batch

        return collate

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return token_scores(logits, batch["labels"])
