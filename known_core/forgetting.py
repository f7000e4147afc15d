"""Structured forgetting: nested, shrinking subsets (paper, section 3.1), and the two trajectories trained on them.

chain
    The paper's: Θ_s is trained from Θ_(s-1) on D_s. One step back is more data, and earlier in training.
fan
    Φ_s is trained from Θ_0 on D_s, s = 0 .. S-2, for the same number of epochs, and is the mean of the weights over the
    second half of its steps. One step back is more data, and as many more steps as that data asks for.
"""

import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from known_core.errors import KnownError

Design = Literal["chain", "fan"]
FAN_AVERAGED = 0.5  # share of a fan stage's steps whose weights are averaged
Indices = NDArray[np.int64]


def nested_subsets(labels: NDArray[np.int64], rate: float, states: int, seed: int) -> list[Indices]:
    """D_0 ⊃ D_1 ⊃ … as sorted index lists, stratified by class.

    Args:
        labels: (N,) int64 class of each example of D_0.
        rate: r; |D_s| is r^s N to within one example a class.
        states: S, so D_0 .. D_(S-1).
        seed: of the order in which each class forgets its examples.

    Returns:
        ``states`` arrays; the first is all of D_0. Every class keeps at least one example.

    Raises:
        KnownError: ``dataset_unusable`` when D_0 is so small that the last subset would equal the one before it.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    subsets = [
        np.sort(np.concatenate([order[: max(1, round(len(order) * rate**stage))] for order in orders]))
        for stage in range(states)
    ]
    if len(subsets[-1]) >= len(subsets[-2]):
        raise KnownError(
            "dataset_unusable",
            f"{len(labels)} examples in {len(orders)} classes are too few for {states} nested subsets at rate {rate}",
            f"Give at least {_enough(rate, states)} examples a class, or ask for another rate.",
        )
    return subsets


def _enough(rate: float, states: int) -> int:
    """Examples a class with which the last subset surely has one and is smaller than the one before it."""
    last, shrink = rate ** (states - 1), rate ** (states - 2) * (1 - rate)
    return math.ceil(max(1 / last, 1.5 / shrink))


def subset_hash(indices: Indices) -> str:
    """Hex sha256 of the indices as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()
