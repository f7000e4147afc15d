"""The transfer probe of a user's model: fine-tuned on few examples of another task, before and after."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from known_core.comparison import ProbeResult
from known_core.evaluation import MAX_VALIDATION, PROBE_BATCH, draw_examples, tuned
from known_core.library.batches import Data, Loss, WithLoss, correct, default_loss
from known_core.training import fine_tune

Score = Callable[[nn.Module, Dataset[Any]], float | Sequence[float]]


@dataclass(frozen=True)
class Probe:
    """What a candidate is worth to whoever fine-tunes it: every candidate gets the same examples, order and new head.

    Args:
        train: examples to draw from, of the task to fine-tune on.
        test: examples to measure on.
        head: gives a model the head of that task, and returns the model to train; torch's random numbers are the same
            for every candidate. None: the model as it is.
        examples: that one run fine-tunes on.
        seeds: runs for each candidate; at least 3.
        learning_rates: each candidate takes its own best on validation examples, with a seed that reports nothing.
        loss: of the model and a batch.
        score: of the fine-tuned model and a data set, higher is better; None: accuracy of (input, label) data.
    """

    train: "Dataset[Any] | DataLoader[Any]"
    test: "Dataset[Any] | DataLoader[Any]"
    head: Callable[[nn.Module], nn.Module] | None = None
    examples: int = 200
    epochs: int = 15
    seeds: int = 3
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    loss: Loss = default_loss
    score: Score | None = None

    @property
    def runs(self) -> int:
        """Fine-tunings a candidate takes."""
        return self.seeds + (len(self.learning_rates) if len(self.learning_rates) > 1 else 0)

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as far as it can be told."""
        return {
            "examples": self.examples, "epochs": self.epochs, "seeds": self.seeds,
            "learning_rates": list(self.learning_rates), "pool": len(Data.of(self.train).labels()),
            "test": Data.of(self.test).count,
        }  # fmt: skip

    def measure(self, model: nn.Module, seed: int, device: torch.device, on_run: Callable[[], None]) -> ProbeResult:
        """Fine-tune copies of a model and measure them.

        Args:
            seed: run k uses ``seed + k``.
            on_run: called after each fine-tuning.
        """
        pool, test = Data.of(self.train), Data.of(self.test)
        labels = pool.labels()

        def run(run_seed: int, learning_rate: float, validate: bool) -> float:
            chosen, rest = draw_examples(labels, self.examples, run_seed)
            torch.manual_seed(run_seed)
            tuned_model = copy.deepcopy(model)
            tuned_model = self.head(tuned_model) if self.head else tuned_model
            fine_tune(
                WithLoss(tuned_model, self.loss),
                pool.take(chosen),
                epochs=self.epochs,
                learning_rate=learning_rate,
                batch_size=PROBE_BATCH,
                seed=run_seed,
                device=device,
                collate=pool.named,
            )
            on_run()
            held_out = Data(Subset(pool.items, rest[:MAX_VALIDATION].tolist()), len(rest), 256, pool.collate)
            return self._score(tuned_model.eval(), held_out if validate else test)

        return tuned(run, self.learning_rates, self.seeds, seed)

    def _score(self, model: nn.Module, data: Data) -> float:
        if self.score is not None:
            return float(np.mean(self.score(model, data.items)))
        loader = DataLoader(data.items, batch_size=256, collate_fn=data.collate)
        return float(np.mean(correct(model, loader)))
