"""The loss over the plane: at the given weights it is what the job measured there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from known_core.checkpoint import Checkpoint
from known_core.inputs import lay_out
from known_core.landscape import loss_surface
from known_core.models.registered import build_registered
from known_core.plane import Plane, find_plane
from known_core.spec import JobSpec, LandscapeSettings
from known_core.tasks import TASKS
from known_core.tasks.opened import OpenTask

CPU = torch.device("cpu")


class World:
    """A task, its given weights, four states and a candidate, with or without batch normalisation."""

    def __init__(self, spec: JobSpec, folder: Path, norm: str) -> None:
        spec = spec.model_copy(update={"config": {**(spec.config or {}), "norm": norm}})
        torch.manual_seed(0)
        models = [build_registered(spec.config or {}) for _ in range(2)]
        from safetensors.torch import save_file

        paths = []
        first, second = (model.state_dict() for model in models)
        for index in range(6):
            # towards another network, and a little further in each state, and aside
            generator = torch.Generator().manual_seed(index)
            state = {
                name: torch.lerp(first[name], second[name], 0.05 * index)
                + 0.02 * index * torch.randn(first[name].shape, generator=generator)
                if first[name].is_floating_point() and not name.endswith(("running_mean", "running_var"))
                else first[name]
                for name in first
            }
            paths.append(folder / f"{index}" / "model.safetensors")
            paths[-1].parent.mkdir(parents=True)
            save_file(state, paths[-1], metadata={"format": "pt"})
        spec = spec.model_copy(update={"model": paths[0]})
        lay_out(spec, folder / "inputs")
        self.task = OpenTask(TASKS["image-classification"], spec, folder / "inputs", folder / "cache")
        self.given, *self.states, other = (Checkpoint(path.parent) for path in paths)
        self.others = {"x2": other}

    def plane(self) -> Plane:
        found = find_plane(self.given, self.states, self.others)
        assert found is not None
        return found

    def surface(self, points: int = 5, examples: int = 1000, **options: Any) -> dict[str, Any]:
        options = {"seed": 0, "device": CPU, "batch_size": 64, **options}
        settings = LandscapeSettings(points=points, examples=examples)
        return loss_surface(self.task, self.plane(), self.given, self.states, self.others, settings, **options)

    def loss(self, checkpoint: Checkpoint) -> float:
        scores = self.task.score(self.task.load(checkpoint), self.task.evaluation.items, CPU)
        return float(scores.loss.mean())


@pytest.fixture
def plain(tiny_spec: JobSpec, tmp_path: Path) -> World:
    return World(tiny_spec, tmp_path, "none")


def test_the_loss_at_a_checkpoint_is_what_is_measured_there(plain: World) -> None:
    seen: list[tuple[int, int]] = []
    found = plain.surface(on_point=lambda *step: seen.append(step))
    assert found["examples"] == len(plain.task.evaluation.labels)
    assert found["batch_norm"] == 0
    assert found["at"]["unchanged"] == pytest.approx(plain.loss(plain.given), rel=1e-5)
    assert found["at"]["state 3"] == pytest.approx(plain.loss(plain.states[2]), rel=1e-5)
    assert found["at"]["x2"] == pytest.approx(plain.loss(plain.others["x2"]), rel=1e-5)
    zero = found["loss"][found["b"].index(0)][found["a"].index(0)]
    assert zero == pytest.approx(found["at"]["unchanged"], rel=1e-5)
    assert seen == [(step, 5 * 5 + 6) for step in range(1, 5 * 5 + 7)]


def test_a_point_is_the_given_weights_plus_both_axes(plain: World, tmp_path: Path) -> None:
    """The corner of the grid, built by hand from all weights at once."""
    from safetensors.torch import load_file, save_file

    found, plane = plain.surface(points=3), plain.plane()
    given, *states = (load_file(point.path / "model.safetensors") for point in (plain.given, *plain.states))
    a, b = found["a"][-1], found["b"][0]
    corner = {
        name: (
            tensor.double()
            + sum(
                (a * float(plane.axes[0, k]) + b * float(plane.axes[1, k])) * (state[name].double() - tensor.double())
                for k, state in enumerate(states)
            )
        ).float()
        for name, tensor in given.items()
    }
    (tmp_path / "corner").mkdir()
    save_file(corner, tmp_path / "corner" / "model.safetensors", metadata={"format": "pt"})
    assert found["loss"][0][-1] == pytest.approx(plain.loss(Checkpoint(tmp_path / "corner")), rel=1e-4)


def test_the_grid_holds_every_point_and_few_examples(plain: World) -> None:
    found = plain.surface(points=4, examples=10)
    assert found["examples"] == 10
    for axis in ("a", "b"):
        assert 0 in found[axis]
        assert len(found[axis]) == len(found["loss"]) == 4
        places = [vars(point)[axis] for point in plain.plane().points.values()]
        step = found[axis][1] - found[axis][0]
        assert found[axis][0] <= min(places) + step / 2
        assert found[axis][-1] >= max(places) - step / 2
    assert found == plain.surface(points=4, examples=10, batch_size=3) | {"loss": found["loss"], "at": found["at"]}
    np.testing.assert_allclose(plain.surface(points=4, examples=10, batch_size=3)["loss"], found["loss"], rtol=1e-5)


def test_batch_norm_is_estimated_again_at_every_point(tiny_spec: JobSpec, tmp_path: Path) -> None:
    """A checkpoint's own loss is with its own statistics, those of a random network here, which fit nothing."""
    world = World(tiny_spec, tmp_path, "batch")
    found = world.surface(points=3, examples=60)
    assert found["batch_norm"] == 60
    assert world.surface(points=3)["at"]["unchanged"] == pytest.approx(world.loss(world.given), rel=1e-5)
    zero = found["loss"][found["b"].index(0)][found["a"].index(0)]
    assert zero != pytest.approx(found["at"]["unchanged"], rel=1e-3)


def test_a_loss_that_is_not_finite_is_none(plain: World, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = plain.task.task.measure
    monkeypatch.setattr(
        plain.task.task, "measure", lambda logits, batch: (measure(logits, batch)[0], logits[:, 0] * torch.inf)
    )
    assert {value for row in plain.surface(points=3)["loss"] for value in row} == {None}


@pytest.mark.parametrize("points", [1, 2, -1, 52])
def test_grids_that_are_none(points: int) -> None:
    with pytest.raises(ValueError, match="points"):
        LandscapeSettings(points=points)
