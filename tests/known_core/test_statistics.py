"""Paired intervals against scipy's own."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from known_core.statistics import Interval, paired_interval

accuracies = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=20), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_student_s(pairs: list[tuple[float, float]], confidence: float) -> None:
    after, before = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assume(np.std(np.subtract(after, before)) > 1e-9)
    expected = stats.ttest_rel(after, before).confidence_interval(confidence)
    found = paired_interval(after, before, confidence)
    assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)
    assert found.mean == pytest.approx(float(np.mean(after) - np.mean(before)), abs=1e-12)
    assert found.n == len(pairs)


def test_pinned() -> None:
    found = paired_interval([0.5, 0.6, 0.8], [0.4, 0.4, 0.5])
    assert found.mean == pytest.approx(0.2)
    assert found.low == pytest.approx(-0.0484138)
    assert found.high == pytest.approx(0.4484138)
    assert found.as_dict() == {"mean": found.mean, "low": found.low, "high": found.high, "n": 3}


def test_equal_differences_have_an_interval_of_no_width() -> None:
    found = paired_interval([0.75, 1.0], [0.5, 0.75])
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    assert found.above_zero
    assert not paired_interval([0.5, 0.5], [0.5, 0.5]).above_zero


@pytest.mark.parametrize(("low", "high", "above", "below"), [
    (0.1, 0.2, True, False), (-0.2, -0.1, False, True), (-0.1, 0.1, False, False), (0.0, 0.1, False, False),
    (-0.1, 0.0, False, False),
])  # fmt: skip
def test_above_and_below_zero_are_strict(low: float, high: float, above: bool, below: bool) -> None:
    interval = Interval((low + high) / 2, low, high, 3)
    assert (interval.above_zero, interval.below_zero) == (above, below)


@pytest.mark.parametrize(
    ("after", "before"), [([], []), ([1.0], [1.0]), ([1.0, 2.0], [1.0]), (np.zeros((2, 2)), np.zeros((2, 2)))]
)
def test_other_shapes_are_refused(after: list[float], before: list[float]) -> None:
    with pytest.raises(ValueError, match="two equal lists"):
        paired_interval(after, before)
