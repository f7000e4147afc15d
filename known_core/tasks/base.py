"""What a task is: its networks, its columns, how rows become inputs, and how results are scored."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, default_collate

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import Source
from known_core.data.files import DataFiles, Role
from known_core.errors import KnownError
from known_core.models.base import Network

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Batch]


@dataclass(frozen=True)
class Scores:
    """One number an example, in the order of the data set.

    ``correct`` is (N,) from 0 to 1, the task's metric of each example; ``loss`` is (N,) cross-entropy in nats.
    """

    correct: NDArray[np.float64]
    loss: NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """Examples, and the class of each by which subsets and probes are drawn evenly; zeros where there are none.

    ``classes`` is how many classes a head for these examples has, where only the examples themselves say it (masks).
    """

    items: Dataset[Any]
    labels: NDArray[np.int64]
    classes: int = 0


@dataclass(frozen=True)
class Defaults:
    """What a task trains with where the request does not say."""

    learning_rate: float
    batch_size: int
    evaluation_batch_size: int
    probe_learning_rates: tuple[float, ...]


class Task(Protocol):
    """A kind of model and data. Adding one is a page in docs/tasks.md; :class:`Fits` is optional."""

    name: str
    metric: str  # what Scores.correct is, such as "accuracy"
    new_head: bool  # whether the transfer probe has labels of its own, and so a new head
    defaults: Defaults

    def network(self, config: dict[str, Any]) -> Network:
        """The network a checkpoint's config describes.

        Raises:
            KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
        """

    def roles(self, network: Network) -> tuple[Role, ...]:
        """What it reads of a row."""

    def processor(self, network: Network, source: Source, max_length: int | None) -> Any:
        """How rows enter the network, from the checkpoint's own files.

        Args:
            max_length: tokens an example has at most; None is the task's own choice.

        Raises:
            KnownError: ``processor_missing``, ``processor_invalid``.
        """

    def examples(self, rows: datasets.Dataset, to_model: NDArray[np.int64], processor: Any) -> Labelled:
        """Rows as the network takes them.

        Args:
            rows: the columns of the task's roles.
            to_model: (classes,), for each class of the data the index of the model's output; where the data does not
                name its classes, (labels,) 0, 1, … of the model, and none at all for the data of a new head.
        """

    def collate(self, processor: Any, *, training: bool) -> Collate:
        """Makes a batch of examples."""

    def measure(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The metric and the loss of each example: (N,), (N,)."""


@runtime_checkable
class Fits(Protocol):
    """What a task has besides where its networks lack a part that D_0 decides, such as a head."""

    def fit(
        self, network: Network, start: Checkpoint, batches: Iterable[Batch], classes: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Optional: the tensors that a network without a head takes for one (``take_head``), fitted once a job.

        Args:
            start: the given weights.
            batches: D_0, on the device.
            classes: how many the data has.
        """


def match_labels(files: DataFiles, network: Network, renamed: dict[str, str]) -> NDArray[np.int64]:
    """For each class of the data, the index of the model's output it is: by name where the model has names.

    Where the data does not say its classes (masks), they are the model's.

    Args:
        renamed: the user's own mapping, class of the data to label of the model.

    Raises:
        KnownError: ``labels_mismatch``.
    """
    if not network.num_labels or not files.classes:
        return np.arange(len(files.classes) or network.num_labels)
    if unknown := sorted(renamed.keys() - set(files.classes)):
        raise KnownError(
            "labels_mismatch", f"labels renames {unknown[:5]}, which are no classes of the data",
            f"The classes are {files.classes[:20]}.",
        )  # fmt: skip
    classes = [renamed.get(name, name) for name in files.classes]
    names = network.label_names
    if names is None:
        if len(classes) != network.num_labels:
            raise KnownError(
                "labels_mismatch",
                f"the data set has {len(classes)} classes, the model's head has {network.num_labels}",
                "Give the data the model was trained on, or a config.json whose labels name its classes.",
            )
        return np.arange(len(classes))
    by_name = {name: index for index, name in enumerate(names)}
    found = [by_name.get(name) for name in classes]
    if lost := [name for name, index in zip(classes, found, strict=True) if index is None]:
        raise KnownError(
            "labels_mismatch",
            f"the model has no label {lost[:5]}; its labels are {names[:20]}",
            'Rename the classes to the labels in the model\'s config.json, or say which is which: "labels": '
            '{"class": "label"} (--label class=label).',
        )
    return np.array(found, dtype=np.int64)


def stack(items: list[Any]) -> Batch:
    """Examples of one shape as a batch."""
    batch: Batch = default_collate(items)
    return batch


def stack_or_double(items: list[Any]) -> Batch:
    """The same for training: a lone example is shown twice, as batch norm cannot train on one value a channel, and the
    mean loss is the same."""
    return stack(items * 2 if len(items) == 1 else items)


def class_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and loss of one label an example.

    Args:
        logits: (N, classes). labels: (N,).
    """
    return torch.eq(logits.argmax(1), labels), cross_entropy(logits, labels, reduction="none")


class Items(Dataset[Any]):
    """Examples that are in memory."""

    def __init__(self, items: Sequence[dict[str, Tensor]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._items[index]


def token_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean loss over the tokens of each example that have a label (not -100).

    Args:
        logits: (N, T, classes). labels: (N, T).

    Returns:
        (N,) and (N,).
    """
    counted = labels != -100
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    count = counted.sum(1).clamp(min=1)
    correct = ((logits.argmax(2) == labels) & counted).sum(1) / count
    return correct, losses.sum(1) / count
