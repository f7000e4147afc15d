"""The plane of a trajectory, against numpy's singular value decomposition of all differences at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from known_core import plane as module
from known_core.checkpoint import Checkpoint
from known_core.plane import Plane, find_plane

SHAPES = {"conv.weight": (8, 4, 3, 3), "conv.bias": (8,), "head.weight": (10, 30), "norm.weight": (8,)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Checkpoint]:
    """The given weights, four states, two others; with a buffer and a count that are no weights."""
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = []
    for index in range(7):
        tensors = {name: tensor + 0.1 * index**0.5 * torch.randn(tensor.shape, generator=generator)
                   for name, tensor in given.items()} if index else given  # fmt: skip
        extra = {"norm.running_mean": torch.full((8,), 100.0 * index), "norm.num_batches_tracked": torch.tensor(index)}
        save_file({**tensors, **extra}, tmp_path / f"{index}.safetensors", metadata={"format": "pt"})
        made.append(Checkpoint(tmp_path / f"{index}.safetensors"))
    return made


def vectors(checkpoints: list[Checkpoint]) -> NDArray[np.float64]:
    """(K, n) of the weights alone."""
    loaded = [load_file(checkpoint.path) for checkpoint in checkpoints]
    return np.stack([np.concatenate([state[name].double().numpy().ravel() for name in SHAPES]) for state in loaded])


def plane_of(checkpoints: list[Checkpoint]) -> Plane:
    given, *states = checkpoints[:5]
    found = find_plane(given, states, {"x2": checkpoints[5], "swa": checkpoints[6]})
    assert found is not None
    return found


def test_it_is_that_of_a_singular_value_decomposition(checkpoints: list[Checkpoint]) -> None:
    found = plane_of(checkpoints)
    weights = vectors(checkpoints)
    differences = weights[1:] - weights[0]
    _, sizes, basis = np.linalg.svd(differences[:4], full_matrices=False)
    axes = found.axes @ differences[:4]
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.abs(axes @ basis[:2].T), np.eye(2), atol=1e-7)
    np.testing.assert_allclose(found.shares, sizes[:2] ** 2 / (sizes**2).sum(), rtol=1e-9)
    assert found.length == pytest.approx(np.linalg.norm(weights[0]))
    for name, difference in zip(("state 1", "state 2", "state 3", "state 4", "x2", "swa"), differences, strict=True):
        point = found.points[name]
        np.testing.assert_allclose((point.a, point.b), axes @ difference, atol=1e-9)
        beside = difference - (axes @ difference) @ axes
        assert point.beside == pytest.approx(np.linalg.norm(beside), abs=1e-6)
    assert sum(point.a for name, point in found.points.items() if name.startswith("state")) > 0
    assert Plane.from_dict(found.as_dict()).as_dict() == found.as_dict()


def test_pieces_give_the_same_and_a_part_of_them_nearly_so(
    checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plane_of(checkpoints)
    monkeypatch.setattr(module, "_PIECE", 7)
    pieces = plane_of(checkpoints)
    for name, point in whole.points.items():
        np.testing.assert_allclose((pieces.points[name].a, pieces.points[name].b), (point.a, point.b), atol=1e-8)
    monkeypatch.setattr(module, "_MOST", 400)
    part = plane_of(checkpoints)
    assert 0.4 < part.looked_at < 0.7
    assert part.length == pytest.approx(whole.length, rel=0.2)


def test_states_that_span_no_plane(checkpoints: list[Checkpoint]) -> None:
    given, first = checkpoints[:2]
    assert find_plane(given, [given] * 4, {}) is None
    assert find_plane(given, [first] * 4, {}) is None
