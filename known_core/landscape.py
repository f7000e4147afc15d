"""The loss over the plane of a trajectory: given weights + a u + b v, on a few examples that no stage trained on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from known_core.calibration import has_batch_norm, recalibrate
from known_core.checkpoint import Checkpoint
from known_core.plane import Plane
from known_core.spec import LandscapeSettings
from known_core.tasks.base import Batch
from known_core.tasks.opened import OpenTask

_MARGIN = 0.18  # of the points' extent, on every side


def loss_surface(
    task: OpenTask,
    plane: Plane,
    original: Checkpoint,
    states: Sequence[Checkpoint],
    others: Mapping[str, Checkpoint],
    settings: LandscapeSettings,
    *,
    seed: int,
    device: torch.device,
    batch_size: int,
    on_point: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The loss at the points of a grid, and at every checkpoint itself.

    Three copies of the weights that move are kept besides the network: no more than an optimiser keeps. Where the
    network has batch normalisation, its statistics are estimated again at every point of the grid, on as many training
    examples, as they are for every candidate; a checkpoint's own loss is with its own.

    Args:
        plane: of the states, seen from the given weights.
        states, others: as :func:`~known_core.plane.find_plane` was given them.
        seed: of the examples drawn.
        batch_size: examples at once.

    Returns:
        ``a``, ``b``: coordinates, zero among them; ``loss``: a row for each of ``b``, None where it is not finite;
        ``at``: the loss at each checkpoint by name, "unchanged" for the given one; ``examples``, ``batch_norm``
        (examples that statistics are estimated on, or 0).
    """
    held_out = _batches(task, task.evaluation.items, settings.examples, [seed, 4], device, batch_size)
    total = settings.points**2 + len(states) + len(others) + 1
    done = 0

    def measured(model: nn.Module) -> float | None:
        nonlocal done
        done += 1
        on_point(done, total)
        losses = task.measured(model, held_out).loss
        return _rounded(float(losses.mean())) if np.isfinite(losses).all() else None

    model = task.load(original).to(device).eval()
    normalised = has_batch_norm(model)
    seen = _batches(task, task.d0.items, settings.examples, [seed, 5], device, batch_size) if normalised else []
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in seen]
    at = {"unchanged": measured(model)}
    moving: dict[str, _Moving] = {}
    for index, state in enumerate(states):
        other = task.load(state).to(device).eval()
        at[f"state {index + 1}"] = measured(other)
        _add_differences(moving, model, other, plane.axes[:, index].tolist())
    for name, checkpoint in others.items():
        at[name] = measured(task.load(checkpoint).to(device).eval())
    a, b = (_axis([point[axis] for point in _places(plane)], settings.points) for axis in (0, 1))
    rows = []
    for up in b:
        row = []
        for along in a:
            for moved in moving.values():
                moved.move(along, up)
            if normalised:
                recalibrate(model, inputs)
            row.append(measured(model))
        rows.append(row)
    return {
        "a": [_rounded(value) for value in a],
        "b": [_rounded(value) for value in b],
        "loss": rows,
        "at": at,
        "examples": min(settings.examples, len(task.evaluation.labels)),
        "batch_norm": min(settings.examples, len(task.d0.labels)) if normalised else 0,
    }


class _Moving:
    """A parameter that goes over the plane."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._given = parameter.detach().clone()
        self.axes = torch.zeros_like(self._given), torch.zeros_like(self._given)

    def add(self, difference: Tensor, along: float, up: float) -> None:
        self.axes[0].add_(difference, alpha=along)
        self.axes[1].add_(difference, alpha=up)

    @torch.no_grad()
    def move(self, a: float, b: float) -> None:
        self._parameter.copy_(self._given).add_(self.axes[0], alpha=a).add_(self.axes[1], alpha=b)


@torch.no_grad()
def _add_differences(moving: dict[str, _Moving], model: nn.Module, other: nn.Module, axes: list[float]) -> None:
    given = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        difference = parameter - given[name]
        if name in moving or bool(difference.any()):  # an adapter's base model does not move
            moving.setdefault(name, _Moving(given[name])).add(difference, *axes)


def _batches(
    task: OpenTask, items: Any, count: int, seed: list[int], device: torch.device, batch_size: int
) -> list[Batch]:
    chosen = np.random.default_rng(seed).permutation(len(items))[:count]
    return list(task.batches(Subset(items, np.sort(chosen).tolist()), device, batch_size))


def _places(plane: Plane) -> list[tuple[float, float]]:
    return [(0.0, 0.0), *((point.a, point.b) for point in plane.points.values())]


def _axis(values: Sequence[float], count: int) -> list[float]:
    """Evenly spaced coordinates around all values, moved by less than a step so that zero is one of them."""
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low)
    step = (high - low + 2 * margin) / (count - 1)
    first = -min(max(round((margin - low) / step), 0), count - 1)
    return [place * step for place in range(first, first + count)]


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
