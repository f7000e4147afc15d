"""Causal language modelling: transformers decoders; plain text in blocks."""

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from known_core.checkpoint.source import Source
from known_core.data.files import Role
from known_core.models.base import Network
from known_core.models.transformers_models import TransformersNetwork
from known_core.tasks.base import Batch, Collate, Defaults, Labelled, stack, token_scores
from known_core.tasks.texts import TEXT, Tokens, blocks


class CausalLM:
    """See :class:`known_core.tasks.base.Task`."""

    name = "causal-lm"
    metric = "next-token accuracy"
    new_head = False
    defaults = Defaults(5e-5, 8, 4, (2e-5, 1e-4))

    def network(self, config: dict[str, Any]) -> Network:
        return TransformersNetwork(config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "a causal language model", labels=False)

    def roles(self, network: Network) -> tuple[Role, ...]:
        return (TEXT,)

    def processor(self, network: Network, source: Source, max_length: int | None) -> Tokens:
        return Tokens(network, source, max_length)

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Tokens) -> Labelled:
        return blocks(rows, processor)

    def collate(self, processor: Tokens, *, training: bool) -> Collate:
        return stack

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return token_scores(logits[:, :-1], batch["labels"][:, 1:])
