"""The plane in which a trajectory lies best: principal components of the states' differences to the given weights.

Everything follows from the Gram matrix of the differences, which is summed up piece by piece: what is in memory does
not depend on the model (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 7, draw such planes).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from known_core.checkpoint import Checkpoint
from known_core.kinds import kind_of_moving

_PIECE = 1 << 18  # weights of each checkpoint in memory at once
_MOST = 1 << 26  # weights of each checkpoint that are read; of more, as many in evenly spread pieces
_FLAT = 1e-9  # a second axis with less of the first one's variance is none


@dataclass(frozen=True)
class Point:
    """A checkpoint seen from the plane; distances are Euclidean, between vectors of all weights.

    Args:
        a, b: its coordinates; the given weights are at 0, 0.
        beside: its distance from the plane.
    """

    a: float
    b: float
    beside: float


@dataclass(frozen=True)
class Plane:
    """The given weights are its origin.

    Args:
        axes: (2, S); the unit vector of axis k is the sum over states of axes[k, s] x (state s - given weights).
        shares: (2,); of the states' squared distances from the given weights, what lies along each axis.
        points: every checkpoint by its name.
        length: of the vector of the given weights.
        looked_at: share of the weights that were read.
    """

    axes: NDArray[np.float64]
    shares: tuple[float, float]
    points: dict[str, Point]
    length: float
    looked_at: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"axes": self.axes.tolist(), "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Plane":
        points = {name: Point(**point) for name, point in value["points"].items()}
        first, second = value["shares"]
        return cls(np.array(value["axes"]), (first, second), points, value["length"], value["looked_at"])


def find_plane(original: Checkpoint, states: Sequence[Checkpoint], others: Mapping[str, Checkpoint]) -> Plane | None:
    """The plane through the given weights in which the states of a trajectory lie best.

    Args:
        states: those after the given weights, most data first; they make the plane, and are named "state 1" and on.
        others: checkpoints of the same model that are only looked at from it, by name.

    Returns:
        None where the states do not span a plane.
    """
    gram, length, looked_at = _gram(original, [*states, *others.values()])
    count = len(states)
    variances, vectors = np.linalg.eigh(gram[:count, :count])
    first, second = variances[-1], variances[-2]
    if first <= 0 or second < _FLAT * first:
        return None
    axes = np.stack([vectors[:, -1] / np.sqrt(first), vectors[:, -2] / np.sqrt(second)])
    coordinates = axes @ gram[:count]  # (2, all)
    signs = np.where(coordinates[:, :count].sum(1, keepdims=True) < 0, -1.0, 1.0)  # eigenvectors have none
    axes, coordinates = signs * axes, signs * coordinates
    names = [*(f"state {index}" for index in range(1, count + 1)), *others]
    beside = np.sqrt(np.maximum(np.diag(gram) - (coordinates**2).sum(0), 0))
    points = {name: Point(*map(float, (*coordinates[:, index], beside[index]))) for index, name in enumerate(names)}
    total = float(np.trace(gram[:count, :count]))
    return Plane(axes, (float(first) / total, float(second) / total), points, length, looked_at)


def _gram(original: Checkpoint, others: Sequence[Checkpoint]) -> tuple[NDArray[np.float64], float, float]:
    """(K, K) inner products of the differences, the length of the original, and the share of weights looked at."""
    pieces = list(_pieces(original))
    total, stride = sum(end - begin for _, begin, end in pieces), 1
    while sum(end - begin for _, begin, end in pieces[::stride]) > _MOST:
        stride += 1
    gram, square, seen = np.zeros((len(others), len(others))), 0.0, 0
    for name, begin, end in pieces[::stride]:
        given = original.read_part(name, begin, end).double()
        differences = np.stack([(other.read_part(name, begin, end).double() - given).numpy() for other in others])
        gram += differences @ differences.T
        square += float(given.square().sum())
        seen += end - begin
    share = seen / total if total else 1.0
    return gram / share, float(np.sqrt(square / share)), share


def _pieces(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int]]:
    """What training moves, in the order of the network."""
    shapes = checkpoint.shapes
    for name, info in checkpoint.tensors.items():
        if kind_of_moving(name, shapes, info.dtype) is not None:
            for begin in range(0, info.numel, _PIECE):
                yield name, begin, min(begin + _PIECE, info.numel)
