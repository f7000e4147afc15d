"""Before and after: the transfer probe, paired comparison, and the choice of what to deliver."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from known_core.checkpoint import Checkpoint
from known_core.comparison import ProbeResult
from known_core.spec import EvaluationSettings
from known_core.tasks.opened import OpenTask
from known_core.team import Rank
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
    rank: Rank | None = None,
) -> ProbeResult:
    """Fine-tune a candidate on few downstream examples, over seeds; measure accuracy on the downstream test examples.

    Seed k draws the examples, the new head and their order for every candidate alike, so results pair by position.
    The learning rate is the candidate's own best on a validation draw that uses none of the reporting seeds.

    Args:
        seed: the job's; run k uses ``seed + k``.
        on_run: called after each fine-tuning.
        micro_batch_size, gradient_checkpointing, rank: as for :func:`~known_core.training.fine_tune`.
    """

    def run(run_seed: int, learning_rate: float, validate: bool) -> float:
        chosen, rest = draw_examples(task.probe_pool.labels, settings.probe_examples, run_seed)
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
            rank=rank,
        )
        held_out = Subset(task.probe_pool.items, rest[:MAX_VALIDATION].tolist())
        items = held_out if validate else task.probe_test.items
        on_run()
        return float(task.score(model, items, device).correct.mean())

    assert settings.probe_learning_rates is not None, "known_core.tuning.with_defaults fills it in"
    return tuned(run, settings.probe_learning_rates, settings.seeds, seed)


def tuned(run: Callable[[int, float, bool], float], grid: Sequence[float], seeds: int, seed: int) -> ProbeResult:
    """A probe's accuracy over seeds, at the candidate's own best learning rate.

    Args:
        run: fine-tunes with a seed and a learning rate; returns the accuracy on validation examples (True), or on those
            that report.
        grid: of learning rates.
        seed: run k uses ``seed + k``; validation uses none of these.
    """
    validation = {f"{rate:g}": run(seed + _SELECTION_SEED, rate, True) for rate in grid} if len(grid) > 1 else {}
    best = max(grid, key=lambda rate: validation.get(f"{rate:g}", 0.0))
    return ProbeResult(best, validation, [run(seed + index, best, False) for index in range(seeds)])


def draw_examples(labels: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` indices, classes as even as they come, and the others; at most three quarters of all are drawn."""
    generator = np.random.default_rng([seed, 2])
    count = min(count, len(labels) * 3 // 4)
    queues = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    rank = np.concatenate([np.arange(len(queue)) for queue in queues])
    order = np.concatenate(queues)[np.argsort(rank, kind="stable")]
    return order[:count], generator.permutation(order[count:])
