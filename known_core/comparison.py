"""Candidates compared with the weights that were given, and the choice of what to deliver."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from known_core.points import points
from known_core.statistics import Interval, paired_interval

UNCHANGED = "unchanged"  # the candidate that is Θ_0 itself


@dataclass(frozen=True)
class ProbeResult:
    """Downstream accuracy of one candidate: one figure a seed, with the learning rate chosen on validation."""

    learning_rate: float
    validation: dict[str, float]
    accuracy: list[float]


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


def most_gained(gains: dict[str, Interval]) -> str:
    """The candidate with the highest mean, proven or not."""
    return max(gains, key=lambda name: gains[name].mean)


def conclusion(gains: dict[str, Interval], selected: str, wish: str, metric: str = "accuracy") -> str:
    """The result in words."""
    if selected == UNCHANGED:
        best = most_gained(gains)
        return (
            "Nothing was gained: no candidate's interval lies above zero, so the delivered weights are yours, "
            f"unchanged. The highest mean was {best} with {points(gains[best].as_dict())} points of {metric}."
        )
    gain = gains[selected]
    text = f"{selected} changes downstream {metric} by {points(gain.as_dict())} points over the weights you gave."
    if wish != "best":
        text = f"You asked for {selected}. {text}"
    if gain.above_zero:
        return f"{text} The interval lies above zero: a gain was shown on this probe."
    worse = "a loss was shown" if gain.below_zero else "no gain was shown"
    return f"{text} The interval does not lie above zero: {worse}."


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
