"""Nested subsets: their sizes, their classes, their seeds."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from known_core.errors import KnownError
from known_core.forgetting import nested_subsets, subset_hash

counts = st.lists(st.integers(1, 60), min_size=1, max_size=6)
rates = st.floats(0.1, 0.95)


def labels_of(counts: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    labels = np.repeat(np.arange(len(counts), dtype=np.int64) * 3, counts)
    return np.random.default_rng(7).permutation(labels)


@given(counts, rates, st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_nested_sized_and_stratified(counts: list[int], rate: float, states: int, seed: int) -> None:
    labels = labels_of(counts)
    try:
        subsets = nested_subsets(labels, rate, states, seed)
    except KnownError as error:
        assert error.code == "dataset_unusable"  # noqa: PT017
        assume(False)
    assert len(subsets) == states
    assert np.array_equal(subsets[0], np.arange(len(labels)))
    for stage, subset in enumerate(subsets):
        assert np.array_equal(subset, np.unique(subset))
        if stage:
            assert np.isin(subset, subsets[stage - 1]).all()
        for index, count in enumerate(counts):
            members = int((labels[subset] == index * 3).sum())
            assert members >= 1
            assert abs(members - count * rate**stage) <= 1
    assert len(subsets[-1]) < len(subsets[-2])


@given(counts, rates, st.integers(0, 2**32 - 1))
def test_the_seed_decides_everything(counts: list[int], rate: float, seed: int) -> None:
    labels = labels_of([count + 20 for count in counts])
    try:
        first, again = (nested_subsets(labels, rate, 3, seed) for _ in range(2))
    except KnownError:
        assume(False)
    assert [subset_hash(subset) for subset in first] == [subset_hash(subset) for subset in again]


def test_seeds_differ() -> None:
    labels = labels_of([50, 50])
    hashes = {subset_hash(nested_subsets(labels, 0.5, 5, seed)[1]) for seed in range(20)}
    assert len(hashes) == 20


def test_the_draw_is_stable() -> None:
    """The manifest names subsets by hash: the same seed must draw the same examples in every release."""
    subset = nested_subsets(np.arange(100, dtype=np.int64) % 4, 0.5, 5, 0)[4]
    assert subset.tolist() == [2, 9, 16, 31, 57, 76, 78, 99]
    assert subset_hash(subset) == "18306a325118c72fe113d57131d5635e036dff36ceddfdb8a6d37c4d1cb835ed"
    assert (
        subset_hash(np.array([0, 1, 300], dtype=np.int32).astype(np.int64))
        == "7f521edab91625dc5caf4779ebfa3fc002ea06d03be3cb89a51ba39a700287b2"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_examples(count: int) -> None:
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)") as caught:
        nested_subsets(labels_of([count, count]), 0.5, 5, 0)
    assert f"{2 * count} examples in 2 classes" in caught.value.message


def test_the_hint_s_number_of_examples_is_enough() -> None:
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        with pytest.raises(KnownError) as caught:
            nested_subsets(labels_of([1, 1, 1]), rate, 5, 0)
        enough = int(caught.value.hint.split("at least ")[1].split()[0])
        nested_subsets(labels_of([enough] * 3), rate, 5, 0)
