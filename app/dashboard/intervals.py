"""Intervals drawn: where each candidate's gain lies on a shared axis."""

import math
from dataclasses import dataclass
from typing import Any

WIDTH = 240  # of a drawing, in its own units: job.html's viewBox
_MARGIN = 6


@dataclass(frozen=True)
class Bar:
    """A candidate's gain: x of the interval's ends, of its mean and of zero, between 0 and ``WIDTH``."""

    low: float
    mean: float
    high: float
    zero: float
    proven: bool  # the interval lies above zero
    harmed: bool  # it lies below


def intervals(transfer: dict[str, Any]) -> dict[str, Bar]:
    """The gains of a report's candidates, by name, on one axis that has zero in it."""
    gains = {name: row["gain"] for name, row in transfer.items() if row["gain"]}
    ends: list[float] = [value for gain in gains.values() for value in (gain["low"], gain["high"])]
    finite = [value for value in ends if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    span = (high - low) or 1.0

    def x(value: float) -> float:
        inside = min(max(value, low), high)
        return round(_MARGIN + (WIDTH - 2 * _MARGIN) * (inside - low) / span, 1)

    return {
        name: Bar(x(gain["low"]), x(gain["mean"]), x(gain["high"]), x(0.0), gain["low"] > 0, gain["high"] < 0)
        for name, gain in gains.items()
    }
