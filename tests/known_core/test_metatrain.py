"""Trajectories collected and KNOWN fitted on them, in the smallest."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from known_core.errors import KnownError
from known_core.files import read_json
from known_core.hypermodel import Known
from known_core.metatrain import fit as fitting
from known_core.metatrain.collect import (
    ARCHITECTURES,
    Recipe,
    build_network,
    collect_one,
    draw_recipe,
    held_out,
    image_tensors,
)  # fmt: skip
from known_core.metatrain.fit import fit, load_windows
from known_core.sample_data import ImageArrays

SMALLEST = Recipe(
    seed=0, data="digits", architecture="cnn-batch", width=2, examples=160, pretraining_epochs=1,
    pretraining_learning_rate=3e-3, rate=0.6, epochs_per_stage=1, learning_rate=1e-3, batch_size=64,
)  # fmt: skip


@pytest.fixture(scope="session")
def trajectories(tmp_path_factory: pytest.TempPathFactory, digits: ImageArrays) -> Path:
    """Three trajectories, one of which is held out by its name."""
    root = tmp_path_factory.mktemp("trajectories")
    names = [f"trajectory-{index:06d}" for index in range(100)]
    chosen = [name for name in names if not held_out(Path(name))][:2] + [n for n in names if held_out(Path(n))][:1]
    for seed, (name, architecture) in enumerate(zip(chosen, ["cnn-batch", "cnn-plain", "cnn-batch"], strict=True)):
        collect_one(replace(SMALLEST, seed=seed, architecture=architecture), digits.of_classes([0, 1, 2]), root / name)
    return root


def test_a_trajectory_holds_seven_states_that_move(trajectories: Path) -> None:
    folder = sorted(trajectories.iterdir())[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"state-{i}.safetensors" for i in range(7)),
        "trajectory.json",
    ]
    states = [load_file(folder / f"state-{index}.safetensors") for index in range(7)]
    assert all(state.keys() == states[0].keys() for state in states)
    for before, after in pairwise(states):
        assert not torch.equal(before["head.weight"], after["head.weight"])
    recipe = read_json(folder / "trajectory.json")
    assert recipe["rate"] == 0.6
    assert recipe["last_loss"] > 0


def test_a_trajectory_is_its_recipe_s(trajectories: Path, tmp_path: Path, digits: ImageArrays) -> None:
    folder = next(path for path in trajectories.iterdir() if read_json(path / "trajectory.json")["seed"] == 0)
    collect_one(SMALLEST, digits.of_classes([0, 1, 2]), tmp_path / "again")
    for index in (0, 6):
        name = f"state-{index}.safetensors"
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_windows_run_from_the_most_forgotten_state_to_the_target(trajectories: Path) -> None:
    folder = sorted(trajectories.iterdir())[0]
    biases = torch.stack([load_file(folder / f"state-{i}.safetensors")["head.bias"] for i in range(7)], dim=1)
    windows = load_windows([folder], 10**6, 0)
    rows = {tuple(row) for row in windows["bias"].tolist()}
    for values in biases.tolist():
        assert (values[5], values[4], values[3], values[2], values[1], values[0]) in rows  # the target is Θ_0
        assert (values[6], values[5], values[4], values[3], values[2], values[1]) in rows  # the target is Θ_1
    count = sum(tensor.numel() for name, tensor in load_file(folder / "state-0.safetensors").items()
                if name.endswith("weight") and tensor.ndim == 4)  # fmt: skip
    assert windows["conv"].shape == (2 * count, 6)


def test_few_windows_a_trajectory_are_drawn_by_seed(trajectories: Path) -> None:
    folders = sorted(trajectories.iterdir())
    first, again, other = (load_windows(folders, 20, seed)["fc"] for seed in (1, 1, 2))
    assert first.shape == (60, 6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fit_writes_a_hyper_model_and_its_report(
    trajectories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_BATCH", 256)
    steps: list[tuple[str, int, int]] = []
    report = fit(
        trajectories, "tiny", tmp_path, steps=30, per_kind=200, seed=0, on_step=lambda *step: steps.append(step)
    )
    known = Known.load(tmp_path / "tiny.safetensors")
    assert known.metadata == {"name": "tiny", "recipes_sha256": report["recipes_sha256"]}
    assert read_json(tmp_path / "tiny.json") == report
    assert (report["trajectories"], report["held_out_trajectories"]) == (2, 1)
    assert report["architectures"] == ["cnn-batch", "cnn-plain"]
    assert report["data"] == ["digits"]
    assert set(report["kinds"]) == {"conv", "fc", "bias"}
    for kind in report["kinds"].values():
        assert kind.keys() == {
            "windows", "held_out_windows", "error_of_theta_0", "skill", "shrinkage_factor", "shrinkage_skill"
        }  # fmt: skip
        assert 0 < kind["error_of_theta_0"] < 1
        assert kind["skill"] < 1
        assert 0.6 <= kind["shrinkage_factor"] <= 1.1
    assert steps[-1] == ("bias", 30, 30)
    assert len(steps) == 90
    again = fit(trajectories, "tiny", tmp_path / "again", steps=30, per_kind=200, seed=0)
    assert again["kinds"] == report["kinds"]
    first, second = load_file(tmp_path / "tiny.safetensors"), load_file(tmp_path / "again" / "tiny.safetensors")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_fit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On windows whose next value is plain to see, the error falls far below "predict Θ_0"."""
    monkeypatch.setattr(fitting, "_BATCH", 1024)
    torch.manual_seed(0)
    start = torch.randn(2000, 1)
    windows = start * torch.linspace(1.0, 2.0, 6)  # each state adds a fifth of the first
    known = Known()
    fitting._fit_kind(known, "fc", windows, 100, 0, lambda kind, step, total: None)
    assert fitting._skill(known, "fc", windows, windows)["skill"] > 0.5


def test_too_few_trajectories(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"has 0 trajectories.*\(too_few_trajectories\)"):
        fit(tmp_path, "x", tmp_path / "out", steps=1, per_kind=1, seed=0)
    assert not (tmp_path / "out").exists()


def test_recipes_are_their_seed_s() -> None:
    assert draw_recipe(3, ["digits", "fashion"]) == draw_recipe(3, ["digits", "fashion"])
    recipes = [draw_recipe(seed, ["digits", "fashion"]) for seed in range(200)]
    assert {recipe.architecture for recipe in recipes} == set(ARCHITECTURES)
    assert {recipe.data for recipe in recipes} == {"digits", "fashion"}
    assert all(0.4 <= recipe.rate <= 0.9 and 1e-5 <= recipe.learning_rate <= 4e-3 for recipe in recipes)
    assert 10 < sum(held_out(Path(f"trajectory-{seed:06d}")) for seed in range(200)) < 60


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_take_the_images(architecture: str, digits: ImageArrays) -> None:
    torch.manual_seed(0)
    item = image_tensors(digits, 28)[0]
    assert item["pixel_values"].shape == (1, 28, 28)
    assert -1 <= item["pixel_values"].min() < item["pixel_values"].max() <= 1
    model = build_network(architecture, 10, 1, 28, 8).eval()
    with torch.inference_mode():
        assert model(item["pixel_values"][None])["logits"].shape == (1, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
