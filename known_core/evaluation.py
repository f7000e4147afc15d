"""Before and after: the transfer probe, paired comparison, and the choice of what to deliver."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from known_core.checkpoint import Checkpoint
from known_core.comparison import ProbeResult
from known_core.spec import EvaluationSettings
from known_core.tasks.base import Labelled
from known_core.tasks.opened import OpenTask
from known_core.training import fine_tune

_SELECTION_SEED = 1_000_000  # never one of the seeds that report
MAX_VALIDATION = 1000
PROBE_BATCH = 32


def probe_runs(settings: EvaluationSettings) -> int:
    """Fine-tunings one probe makes."""
    grid = len(settings.probe_learning_rates or ())
    return settings.seeds + (grid if grid > 1 else 0)


def transfer_probe(
    task: OpenTask,
    checkpoint: Checkpoint,
    settings: EvaluationSettings,
    seed: int,
    device: torch.device,
    on_run: Callable[[], None] = lambda: None,
    *,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
) -> ProbeResult:
    """Fine-tune a candidate on few downstream examples, over seeds; measure accuracy on the downstream test examples.

    Seed k draws the examples, the new head and their order for every candidate alike, so results pair by position.
    The learning rate is the candidate's own best on a validation draw that uses none of the reporting seeds.

    Args:
        seed: the job's; run k uses ``seed + k``.
        on_run: called after each fine-tuning.
        micro_batch_size, gradient_checkpointing: as for :func:`~known_core.training.fine_tune`.
    """

    def run(run_seed: int, learning_rate: float, test: Labelled | None) -> float:
        chosen, rest = _draw(task.probe_pool.labels, settings.probe_examples, run_seed)
        model = task.load_for_probe(checkpoint, run_seed)
        fine_tune(
            model,
            Subset(task.probe_pool.items, chosen.tolist()),
            epochs=settings.probe_epochs,
            learning_rate=learning_rate,
            batch_size=PROBE_BATCH,
            seed=run_seed,
            device=device,
            collate=task.collate(training=True),
            micro_batch_size=micro_batch_size,
            gradient_checkpointing=gradient_checkpointing,
        )
        items = test.items if test else Subset(task.probe_pool.items, rest[:MAX_VALIDATION].tolist())
        on_run()
        return float(task.score(model, items, device).correct.mean())

    assert settings.probe_learning_rates is not None, "known_core.tuning.with_defaults fills it in"
    grid = settings.probe_learning_rates
    validation = {f"{rate:g}": run(seed + _SELECTION_SEED, rate, None) for rate in grid} if len(grid) > 1 else {}
    best = max(grid, key=lambda rate: validation.get(f"{rate:g}", 0.0))
    accuracy = [run(seed + index, best, task.probe_test) for index in range(settings.seeds)]
    return ProbeResult(best, validation, accuracy)


def _draw(labels: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` indices, classes as even as they come, and the others; at most three quarters of all are drawn."""
    generator = np.random.default_rng([seed, 2])
    count = min(count, len(labels) * 3 // 4)
    queues = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    rank = np.concatenate([np.arange(len(queue)) for queue in queues])
    order = np.concatenate(queues)[np.argsort(rank, kind="stable")]
    return order[:count], generator.permutation(order[count:])
