"""A user's batches: what they are made of, their loss, their labels, and the device they go to."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from known_core.errors import KnownError

Loss = Callable[[nn.Module, Any], Tensor]
Collate = Callable[[list[Any]], Any]
DEFAULT_BATCH = 32


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of (input, label) batches; of batches that are mappings, the loss that the model itself returns."""
    if isinstance(batch, Mapping) and _takes(model, batch):
        answer = model(**batch)
        loss: Tensor | None = answer.get("loss") if isinstance(answer, Mapping) else getattr(answer, "loss", None)
        if loss is not None:
            return loss
    elif isinstance(batch, Sequence) and len(batch) == 2:
        return nn.functional.cross_entropy(logits_of(model(batch[0])), batch[1])
    raise KnownError(
        "option_invalid",
        f"a batch is a {type(batch).__name__}, and neither (input, label) nor what the model makes a loss of",
        "Give loss: a function of the model and a batch that returns the loss.",
    )


def _takes(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether a model's forward has arguments of these names."""
    try:
        inspect.signature(model.forward).bind(**batch)
    except TypeError:
        return False
    return True


def logits_of(answer: Any) -> Tensor:
    """A model's output, or the logits in it."""
    if isinstance(answer, Mapping):
        answer = answer["logits"]
    logits: Tensor = getattr(answer, "logits", answer)
    return logits


class WithLoss(nn.Module):
    """A model as a trainer wants it: a batch goes in under one name, and a mapping with its loss comes out."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.loss(self.model, batch)}


@dataclass(frozen=True)
class Data:
    """A data set and how its items become batches."""

    items: Dataset[Any]
    count: int
    batch_size: int
    collate: Collate

    @classmethod
    def of(cls, given: "Dataset[Any] | DataLoader[Any] | Data", batch_size: int | None = None) -> "Data":
        """What a DataLoader holds; its own order and sampler are not used.

        Raises:
            KnownError: ``dataset_unusable`` for data without a length.
        """
        if isinstance(given, Data):
            return given
        loader = given if isinstance(given, DataLoader) else None
        items: Dataset[Any] = loader.dataset if loader else given  # type: ignore[assignment]
        if isinstance(items, IterableDataset) or not hasattr(items, "__len__"):
            raise KnownError(
                "dataset_unusable",
                f"{type(items).__name__} has no length, and nested subsets are drawn by position",
                "Give a data set with __len__ and __getitem__.",
            )
        size = batch_size or (loader.batch_size if loader else None) or DEFAULT_BATCH
        collate = loader.collate_fn if loader else None
        return cls(items, len(items), size, collate or default_collate)

    def take(self, indices: NDArray[np.int64]) -> Dataset[Any]:
        return Subset(self.items, indices.tolist())

    def loader(self, indices: NDArray[np.int64], seed: int) -> "DataLoader[Any]":
        """Shuffled batches of a subset, for a user's own training."""
        order = torch.Generator().manual_seed(seed)
        return DataLoader(
            self.take(indices), batch_size=self.batch_size, shuffle=True, generator=order, collate_fn=self.collate
        )

    def batches(self, device: torch.device) -> Iterator[Any]:
        """Every full batch in order, on the device."""
        size = min(self.batch_size, self.count)
        for batch in DataLoader(self.items, batch_size=size, drop_last=True, collate_fn=self.collate):
            yield send_to_device(batch, device)

    def named(self, items: list[Any]) -> dict[str, Any]:
        """A batch for :class:`WithLoss`. A lone item is shown twice: batch norm cannot train on one value a channel."""
        return {"batch": self.collate(items * 2 if len(items) == 1 else items)}

    def labels(self) -> NDArray[np.int64]:
        """(N,) the class of each item, by which subsets are drawn evenly; zeros where items have none."""
        return labels_of(self.items, self.count)


def labels_of(items: Any, count: int) -> NDArray[np.int64]:
    """As torchvision's data sets have them (``targets``), or the second part of (input, label) items."""
    found: Any = getattr(items, "targets", None)
    if found is None:
        first = items[0]
        if isinstance(first, Mapping):
            name = next((name for name in ("labels", "label") if name in first), None)
            found = None if name is None else [items[index][name] for index in range(count)]
        elif isinstance(first, Sequence) and len(first) == 2:
            found = [items[index][1] for index in range(count)]
    if found is not None:
        with suppress(ValueError, TypeError):
            labels = np.asarray([int(label) for label in found], dtype=np.int64)
            if len(labels) == count and len(np.unique(labels)) <= count // 2:
                return labels
    return np.zeros(count, dtype=np.int64)


@torch.inference_mode()
def correct(model: nn.Module, dataset: "Dataset[Any] | DataLoader[Any]", batch_size: int = 256) -> list[float]:
    """1.0 for each example of (input, label) data that is classified right, else 0.0: what ``evaluate`` may return."""
    data = Data.of(dataset, batch_size)
    device = next(model.parameters()).device
    model.eval()
    found: list[float] = []
    for batch in DataLoader(data.items, batch_size=data.batch_size, collate_fn=data.collate):
        inputs, labels = send_to_device(batch, device)
        found += (logits_of(model(inputs)).argmax(-1) == labels).float().flatten().tolist()
    return found
