"""What a task gives the pipeline: a model and its data behind one small interface."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from known_core.checkpoint import Checkpoint
from known_core.spec import JobSpec


@dataclass(frozen=True)
class Scores:
    """One number an example, in the order of the data set.

    ``correct`` is (N,) 0 or 1; ``loss`` is (N,) cross-entropy in nats.
    """

    correct: NDArray[np.float64]
    loss: NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """A data set with the class of each item, as a probe needs it."""

    items: Dataset[Any]
    labels: NDArray[np.int64]


class OpenTask(Protocol):
    """A task with its model and data loaded."""

    d0: Labelled  # the training data, evaluation examples taken out
    evaluation: Labelled  # examples of D_0's own task that the stages never train on
    probe_pool: Labelled  # downstream examples to fine-tune on
    probe_test: Labelled  # downstream examples to measure on

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The network with these weights, float32, on the CPU."""

    def load_for_probe(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """The same with a new head for the downstream labels, initialised from the seed."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """One state, as safetensors under the names of the original checkpoint."""

    def score(self, model: nn.Module, items: Dataset[Any], device: torch.device) -> Scores:
        """How the model does on each item, in order."""

    def inputs(self, device: torch.device) -> Iterator[Tensor]:
        """The inputs of D_0 in batches, for calibration."""

    def summary(self) -> dict[str, Any]:
        """What was understood of the inputs, for the report."""


class Task(Protocol):
    """A kind of model and data, such as image classification."""

    def inspect(self, spec: JobSpec) -> dict[str, Any]:
        """Check the inputs of a job without unpacking them.

        Returns:
            What was understood: parameters, classes, counts.

        Raises:
            KnownError: the first thing that makes the job impossible, pointing at the request's field.
        """

    def unpack(self, spec: JobSpec, folder: Path) -> None:
        """Lay the inputs out as files below ``folder``."""

    def open(self, spec: JobSpec, folder: Path, cache: Path) -> OpenTask:
        """Load what :meth:`unpack` laid out."""
