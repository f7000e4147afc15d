"""What a report says besides its figures."""

import pytest

from known_core.report.build import _harm
from tests.artifacts import sample_report


@pytest.mark.parametrize(
    ("accuracy", "examples", "said"),
    [
        ([0.885, 0.285, 0.3], [1000, 1000, 500], True),  # a fan whose first state, on all of the data, is much worse
        ([0.885, 0.86, 0.3], [1000, 1000, 500], False),
        ([0.885, 0.285, 0.2], [1000, 500, 250], False),  # a chain is to forget
    ],
)
def test_training_that_harms_is_said(accuracy: list[float], examples: list[int], said: bool) -> None:
    assert bool(_harm(accuracy, examples)) is said


def test_a_report_without_harm_says_nothing_of_it() -> None:
    assert not [note for note in sample_report()["notes"] if "forgetting.learning_rate" in note]
