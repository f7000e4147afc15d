"""Paired comparisons: the mean of differences with its interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # what scipy.stats.t.ppf calls; scipy.stats takes half a second to import


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval over ``n`` paired differences."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def paired_interval(
    after: Sequence[float] | NDArray[np.float64],
    before: Sequence[float] | NDArray[np.float64],
    confidence: float = 0.95,
) -> Interval:
    """Student's t interval of the mean of ``after - before``.

    Args:
        after, before: (n,) measurements, paired by position; n >= 2.
        confidence: of the two-sided interval.

    Raises:
        ValueError: when the lengths differ or are under 2.
    """
    first, second = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(f"paired samples must be two equal lists of at least 2; got {first.shape} and {second.shape}")
    differences = first - second
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / np.sqrt(len(differences))
    half = float(stdtrit(len(differences) - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - half, mean + half, len(differences))
