"""Before and after: the transfer probe, paired comparison, and the choice of what to deliver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from known_core.checkpoint import Checkpoint
from known_core.spec import EvaluationSettings
from known_core.statistics import Interval, paired_interval
from known_core.tasks.base import Labelled
from known_core.tasks.opened import OpenTask
from known_core.training import fine_tune

UNCHANGED = "unchanged"  # the candidate that is Θ_0 itself
_SELECTION_SEED = 1_000_000  # never one of the seeds that report
_MAX_VALIDATION = 1000
_PROBE_BATCH = 32


@dataclass(frozen=True)
class ProbeResult:
    """Downstream accuracy of one candidate: one figure a seed, with the learning rate chosen on validation."""

    learning_rate: float
    validation: dict[str, float]
    accuracy: list[float]


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
) -> ProbeResult:
    """Fine-tune a candidate on few downstream examples, over seeds; measure accuracy on the downstream test examples.

    Seed k draws the examples, the new head and their order for every candidate alike, so results pair by position.
    The learning rate is the candidate's own best on a validation draw that uses none of the reporting seeds.

    Args:
        seed: the job's; run k uses ``seed + k``.
        on_run: called after each fine-tuning.
    """

    def run(run_seed: int, learning_rate: float, test: Labelled | None) -> float:
        chosen, rest = _draw(task.probe_pool.labels, settings.probe_examples, run_seed)
        model = task.load_for_probe(checkpoint, run_seed)
        fine_tune(
            model,
            Subset(task.probe_pool.items, chosen.tolist()),
            epochs=settings.probe_epochs,
            learning_rate=learning_rate,
            batch_size=_PROBE_BATCH,
            seed=run_seed,
            device=device,
            collate=task.collate(training=True),
        )
        items = test.items if test else Subset(task.probe_pool.items, rest[:_MAX_VALIDATION].tolist())
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


def compare(candidates: dict[str, list[float]]) -> dict[str, Interval]:
    """The paired difference of each candidate to ``unchanged``, in the metric's unit."""
    before = candidates[UNCHANGED]
    return {name: paired_interval(after, before) for name, after in candidates.items() if name != UNCHANGED}


def select(gains: dict[str, Interval], wish: str = "best") -> str:
    """The candidate to deliver: the one asked for, or the best whose interval lies above zero, else ``unchanged``."""
    if wish != "best":
        return wish
    proven = {name: gain for name, gain in gains.items() if gain.above_zero}
    return max(proven, key=lambda name: proven[name].mean) if proven else UNCHANGED


def conclusion(gains: dict[str, Interval], selected: str, wish: str, metric: str = "accuracy") -> str:
    """The result in words."""
    if selected == UNCHANGED:
        best = max(gains, key=lambda name: gains[name].mean)
        return (
            "Nothing was gained: no candidate's interval lies above zero, so the delivered weights are yours, "
            f"unchanged. The highest mean was {best} with {_points(gains[best])} points of {metric}."
        )
    gain = gains[selected]
    text = f"{selected} changes downstream {metric} by {_points(gain)} points over the weights you gave."
    if wish != "best":
        text = f"You asked for {selected}. {text}"
    if gain.above_zero:
        return f"{text} The interval lies above zero: a gain was shown on this probe."
    worse = "a loss was shown" if gain.below_zero else "no gain was shown"
    return f"{text} The interval does not lie above zero: {worse}."


def _points(gain: Interval) -> str:
    return f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def comparison(candidates: dict[str, ProbeResult], gains: dict[str, Interval]) -> dict[str, Any]:
    """Every probe figure, as the report holds it."""
    return {
        name: {
            "accuracy": result.accuracy,
            "mean": float(np.mean(result.accuracy)),
            "learning_rate": result.learning_rate,
            "validation": result.validation,
            "gain": gains[name].as_dict() if name in gains else None,
        }
        for name, result in candidates.items()
    }
