"""What the tasks on texts share: tokens of an example, batches padded to their longest, and blocks of running text."""

from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from known_core.checkpoint.source import Source
from known_core.data.files import Role, unusable
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.models.processors import tokenizer_of
from known_core.tasks.base import Batch, Items, Labelled

TEXT = Role("text", "text", ("text", "sentence", "sentence1", "premise", "question1", "content", "review", "document"))
TEXT_PAIR = Role("text_pair", "text", ("text_pair", "sentence2", "hypothesis", "question2"), required=False)
_LONGEST = 512  # tokens of an example where the request does not say
_CHUNK = 1000  # examples tokenised together


class Tokens:
    """A tokenizer and the number of tokens an example may have.

    Raises:
        KnownError: what :func:`~known_core.models.processors.tokenizer_of` raises; ``processor_invalid`` for more
            tokens than the network has.
    """

    def __init__(self, network: Network, source: Source, max_length: int | None) -> None:
        self.tokenizer = tokenizer_of(network.config, source)
        known, rows = self.tokenizer.vocab_size, getattr(network.parsed, "vocab_size", None)
        if rows is not None and known > rows:
            raise KnownError(
                "processor_invalid",
                f"the tokenizer has {known} tokens, the network {rows}",
                "Save the tokenizer that belongs to the model: tokenizer.save_pretrained(folder).",
            )
        positions = getattr(network.parsed, "max_position_embeddings", None) or _LONGEST
        self.max_length = int(min(max_length or _LONGEST, positions, self.tokenizer.model_max_length))

    def pad(self, items: list[Batch], *, label_padding: int | None = None) -> Batch:
        """A batch as long as its longest example; token labels are padded with ``label_padding``."""
        length = max(len(item["input_ids"]) for item in items)
        padding = {"input_ids": self.tokenizer.pad_token_id, "labels": label_padding}

        def padded(name: str, value: Tensor) -> Tensor:
            missing = length - len(value)
            return torch.nn.functional.pad(value, (0, missing), value=padding.get(name, 0))

        return {
            name: torch.stack([padded(name, item[name]) if item[name].ndim else item[name] for item in items])
            for name in items[0]
        }

    def encode(self, *columns: list[Any], **options: Any) -> list[Batch]:
        """Tokens of each example, truncated; what the tokenizer says the network takes."""
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, **options)
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
        return [
            {name: torch.tensor(encoded[name][index], dtype=torch.int64) for name in names}
            for index in range(len(encoded["input_ids"]))
        ]


def encode_texts(rows: datasets.Dataset, tokens: Tokens) -> list[Batch]:
    """The rows' texts, in pairs where they have a second one."""
    items: list[Batch] = []
    for begin in range(0, len(rows), _CHUNK):
        chunk = rows[begin : begin + _CHUNK]
        items += tokens.encode(*(chunk[name] for name in ("text", "text_pair") if name in chunk))
    return items


def blocks(rows: datasets.Dataset, tokens: Tokens) -> Labelled:
    """All texts, one after the other with the end of a text between them, cut into blocks of the same length.

    Each block is an example, all of one class. What does not fill the last block is left out.

    Raises:
        KnownError: ``dataset_unusable`` for less text than two blocks.
    """
    stream: list[int] = []
    end = tokens.tokenizer.eos_token_id if tokens.tokenizer.eos_token_id is not None else tokens.tokenizer.sep_token_id
    for begin in range(0, len(rows), _CHUNK):
        encoded = tokens.tokenizer(rows[begin : begin + _CHUNK]["text"], add_special_tokens=False, verbose=False)
        for text in encoded["input_ids"]:
            stream += [*text, *([end] if end is not None else [])]
    count = len(stream) // tokens.max_length
    if count < 2:
        raise unusable(
            f"the texts make {len(stream)} tokens, less than two blocks of {tokens.max_length}",
            "Give more text, or a smaller forgetting.max_length.",
        )
    whole = torch.tensor(stream[: count * tokens.max_length], dtype=torch.int64).view(count, tokens.max_length)
    items = [{"input_ids": block, "attention_mask": torch.ones_like(block), "labels": block} for block in whole]
    return Labelled(Items(items), np.zeros(count, dtype=np.int64))


def labelled(items: list[Batch], labels: NDArray[np.int64]) -> Labelled:
    """Examples with one label each."""
    return Labelled(
        Items([{**item, "labels": torch.tensor(int(label))} for item, label in zip(items, labels, strict=True)]), labels
    )
