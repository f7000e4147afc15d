"""How far a candidate's weights are from the given ones, tensor by tensor: quantiles and a small histogram of each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from known_core.checkpoint import Checkpoint
from known_core.kinds import Kind

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 31
_SAMPLE = 1 << 20  # weights of one tensor that are looked at; of a larger one as many in evenly spread pieces
_PIECES = 16
_MOST_TENSORS = 400  # of a network with more, as many evenly spread ones


def weight_changes(original: Checkpoint, candidate: Checkpoint, kinds: dict[str, Kind]) -> dict[str, Any]:
    """The change of every weight, in units of its tensor's size: the root mean square of the given weights.

    One tensor's sample at a time is in memory.

    Args:
        kinds: the tensors to look at.

    Returns:
        ``tensors``: of each ``name``, ``kind``, ``weights`` (how many), ``size`` (root mean square of the given ones),
        ``change`` (that of the differences, relative to ``size``), ``quantiles`` and ``histogram`` (``low``, ``high``,
        ``counts`` of equal bins) of the relative differences; the last three are None where the given tensor is zero.
        ``left_out``: how many tensors are not among them.
    """
    names = [name for name in original.tensors if name in kinds]
    chosen = [names[index] for index in _spread(len(names), _MOST_TENSORS)]
    tensors = [_change(original, candidate, name, kinds[name]) for name in chosen]
    return {"tensors": tensors, "left_out": len(names) - len(chosen)}


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly spread."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _change(original: Checkpoint, candidate: Checkpoint, name: str, kind: Kind) -> dict[str, Any]:
    before, after = _sample(original, name), _sample(candidate, name)
    size = float(np.sqrt(np.mean(before**2)))
    found: dict[str, Any] = {"name": name, "kind": kind, "weights": original.tensors[name].numel, "size": size}
    if size == 0:
        return found | {"change": None, "quantiles": None, "histogram": None}
    relative = (after - before) / size
    quantiles = np.quantile(relative, QUANTILES)
    low, high = float(relative.min()), float(relative.max())
    counts, _ = np.histogram(relative, _BINS, (low, high) if high > low else (low - 1e-6, high + 1e-6))
    return found | {
        "change": float(np.sqrt(np.mean(relative**2))),
        "quantiles": {str(share): float(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": {"low": low, "high": high, "counts": counts.tolist()},
    }


def _sample(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    """(n,), the same places of every checkpoint of one model."""
    count = checkpoint.tensors[name].numel
    if count <= _SAMPLE:
        return checkpoint.read_part(name, 0, count).double().numpy()
    length = _SAMPLE // _PIECES
    begins = np.linspace(0, count - length, _PIECES).astype(int).tolist()
    return np.concatenate([checkpoint.read_part(name, begin, begin + length).double().numpy() for begin in begins])
