"""Trajectories collected and hyper-models fitted on them, in the smallest."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from known_core.errors import KnownError
from known_core.files import read_json, sha256_file
from known_core.forgetting import Design
from known_core.hypermodel import Known
from known_core.hypermodels import load_hypermodel
from known_core.metatrain import collect as collecting
from known_core.metatrain import fit as fitting
from known_core.metatrain.collect import (
    LARGER,
    Recipe,
    collect,
    collect_one,
    draw_recipe,
    held_out,
    read_recipe,
    trajectories,
)
from known_core.metatrain.fit import Window, fit, load_windows, skills, windows
from known_core.networks import IMAGE_ARCHITECTURES
from known_core.sample_data import ImageArrays
from known_core.scale_free import ScaleFreeKnown, statistics

SMALLEST = Recipe(
    seed=0, design="chain", data="digits", architecture="cnn-batch", width=2, examples=160, pretraining_epochs=1,
    pretraining_learning_rate=3e-3, rate=0.6, epochs_per_stage=1, learning_rate=1e-3, batch_size=64,
    optimizer="adamw_torch", augment=False,
)  # fmt: skip


def few(root: Path, digits: ImageArrays, design: Design) -> Path:
    """Three trajectories, one of which is held out by its name."""
    names = [Path(f"trajectory-{index:06d}.safetensors") for index in range(100)]
    chosen = [name for name in names if not held_out(name)][:2] + [name for name in names if held_out(name)][:1]
    for seed, (name, architecture) in enumerate(zip(chosen, ["cnn-batch", "cnn-plain", "cnn-batch"], strict=True)):
        recipe = replace(SMALLEST, seed=seed, architecture=architecture, design=design, examples=110)
        collect_one(recipe, digits.of_classes([0, 1, 2]), root / name)
    return root


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory, digits: ImageArrays) -> Path:
    return few(tmp_path_factory.mktemp("chains"), digits, "chain")


@pytest.fixture(scope="session")
def fans(tmp_path_factory: pytest.TempPathFactory, digits: ImageArrays) -> Path:
    return few(tmp_path_factory.mktemp("fans"), digits, "fan")


def states(shard: Path) -> list[dict[str, torch.Tensor]]:
    """Θ_0 (or a chain's first state), then the states, most data first; floating tensors only."""
    tensors = load_file(shard)
    start = {name.removeprefix("start."): tensor for name, tensor in tensors.items() if name.startswith("start.")}
    moved = [
        {name: start[name] + tensors[f"{index}.{name}"] for name in start if f"{index}.{name}" in tensors}
        for index in range(7)
    ]
    return [start, *moved]


@pytest.mark.parametrize("design", ["chain", "fan"])
def test_a_trajectory_holds_seven_states_that_differ(design: str, request: pytest.FixtureRequest) -> None:
    shard = trajectories(request.getfixturevalue(f"{design}s"))[0]
    start, *moved = states(shard)
    heads = [state["head.weight"] for state in moved]
    assert all(not torch.equal(heads[i], heads[j]) for i in range(7) for j in range(i))
    assert torch.equal(heads[0], start["head.weight"]) == (design == "chain")
    assert read_recipe(shard).design == design


def test_a_trajectory_is_its_recipe_s(chains: Path, tmp_path: Path, digits: ImageArrays) -> None:
    shard = next(path for path in trajectories(chains) if read_recipe(path).seed == 0)
    collect_one(read_recipe(shard), digits.of_classes([0, 1, 2]), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == shard.read_bytes()


def test_float16_keeps_the_displacements(fans: Path, tmp_path: Path, digits: ImageArrays) -> None:
    shard = next(path for path in trajectories(fans) if read_recipe(path).seed == 0)
    collect_one(read_recipe(shard), digits.of_classes([0, 1, 2]), tmp_path / "half.safetensors", "float16")
    whole, half = load_file(shard), load_file(tmp_path / "half.safetensors")
    assert half["0.head.weight"].dtype == torch.float16
    assert half["start.head.weight"].dtype == torch.float32
    torch.testing.assert_close(half["0.head.weight"].float(), whole["0.head.weight"], atol=1e-6, rtol=1e-3)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * shard.stat().st_size


def test_a_chain_s_windows_slide(chains: Path) -> None:
    shard = trajectories(chains)[0]
    _, *moved = states(shard)
    biases = torch.stack([state["head.bias"] for state in moved])
    found = [w for w in windows(shard, Known().kind_of) if w[0] == "bias" and w[1].shape == (5, 3)]
    assert [step for *_, step in found] == [1, 1]
    for target, (_, five, wanted, _) in enumerate(found):
        torch.testing.assert_close(five, biases[target + 1 : target + 6])
        torch.testing.assert_close(wanted, biases[target])


def test_a_fan_s_windows_share_their_states_and_differ_in_their_target(fans: Path) -> None:
    shard = trajectories(fans)[0]
    start, *moved = states(shard)
    found = [w for w in windows(shard, ScaleFreeKnown().kind_of) if w[1].shape == (5, 3)]
    assert [step for *_, step in found] == [1, 2, 3]
    for _, five, target, step in found:
        expected = [start["head.bias"], *(state["head.bias"] for state in moved[LARGER : LARGER + 4])]
        torch.testing.assert_close(five, torch.stack(expected))
        torch.testing.assert_close(target, moved[LARGER - step]["head.bias"])


def test_few_weights_a_trajectory_are_drawn_by_seed(fans: Path) -> None:
    shards = trajectories(fans)
    first, again, other = (load_windows(shards, ScaleFreeKnown().kind_of, 300, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.target, b.target) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a.target, b.target) for a, b in zip(first, other, strict=True))
    matrices = [window for window in first if window.kind == "fc"]
    assert max(len(window.target) for window in matrices) == 300 // 6  # two matrices, three targets


@pytest.fixture
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_BATCH", 512)


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize(("design", "kind"), [("chain", Known), ("fan", ScaleFreeKnown)])
def test_fit_writes_a_hyper_model_and_its_report(
    design: str, kind: type[Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"{design}s")
    steps: list[tuple[str, int, int]] = []
    report = fit(
        folder, "tiny", tmp_path, steps=20, per_kind=200, seed=0, leave_out=True,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    known = load_hypermodel(tmp_path / "tiny.safetensors")
    assert isinstance(known, kind)
    assert known.metadata == {"name": "tiny", "recipes_sha256": report["recipes_sha256"]}
    assert read_json(tmp_path / "tiny.json") == report
    assert (report["design"], report["trajectories"], report["held_out_trajectories"]) == (design, 2, 1)
    assert report["architectures"] == ["cnn-batch", "cnn-plain"]
    assert set(report["kinds"]) == {"conv", "fc", "bias"}
    for found in report["kinds"].values():
        assert found.keys() == {"windows", "skill", "shrinkage_factor", "shrinkage_skill"}
        assert found["skill"] < 1
        assert 0.6 <= found["shrinkage_factor"] <= 1.1
    assert set(report["held_out"]) == {"cnn-batch", "cnn-plain", "digits"}
    assert set(report["held_out"]["cnn-batch"]) == {"fitted_with_others", "never_seen"}
    assert set(report["held_out"]["cnn-plain"]) == {"never_seen"}  # none of it is held out
    assert report["held_out"]["digits"].get("never_seen") is None  # there is no other data to fit on
    assert ("bias", 20, 20) in steps
    assert ("no cnn-plain conv", 1, 20) in steps
    again = fit(folder, "tiny", tmp_path / "again", steps=20, per_kind=200, seed=0)
    assert again["kinds"] == report["kinds"]
    assert (tmp_path / "again" / "tiny.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


def plain_windows(count: int) -> list[Window]:
    """Tensors whose next value is plain to see: the target goes on as far again as the first state went."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        theta = torch.randn(400, generator=generator)
        way = 0.3 * torch.randn(400, generator=generator)
        five = torch.stack([theta, *(theta + way * share for share in (1.0, 0.7, 0.5, 0.35))])
        found.append(Window("fc", SMALLEST, five, theta + 2 * way, *statistics(five[1:] - theta, theta, 0.6, 1)))
    return found


@pytest.mark.usefixtures("_small_batches")
@pytest.mark.parametrize(("build", "steps"), [(ScaleFreeKnown, 150), (Known, 250)])
def test_fit_learns_what_is_plain_to_see(build: type[Known] | type[ScaleFreeKnown], steps: int) -> None:
    seen, unseen = plain_windows(12), plain_windows(15)[12:]
    known = fitting._fitted(build, seen, steps, 0, lambda kind, step, total: None)
    found = skills(known, seen, unseen)
    assert list(found) == ["fc"]
    assert found["fc"]["skill"] > 0.5
    assert found["fc"]["shrinkage_skill"] < 0.1


def test_skill_is_that_of_the_definition() -> None:
    [window] = plain_windows(1)
    assert fitting._skill(window, window.target) == 1
    assert fitting._skill(window, window.states[0]) == pytest.approx(0)
    halved = fitting._shrinkage_skills(window)[0]
    assert halved == pytest.approx(fitting._skill(window, 0.6 * window.states[0]), abs=1e-5)


def test_too_few_trajectories(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"has 0 trajectories.*\(too_few_trajectories\)"):
        fit(tmp_path, "x", tmp_path / "out", steps=1, per_kind=1, seed=0)
    assert not (tmp_path / "out").exists()


def test_designs_are_fitted_apart(chains: Path, fans: Path, tmp_path: Path) -> None:
    for index, shard in enumerate([*trajectories(chains), *trajectories(fans)]):
        names = [Path(f"trajectory-{number:06d}.safetensors") for number in range(200)]
        taken = [name for name in names if held_out(name) == (index == 0)]
        (tmp_path / taken[index].name).write_bytes(shard.read_bytes())
    with pytest.raises(KnownError, match=r"\(designs_mixed\)"):
        fit(tmp_path, "x", tmp_path / "out", steps=1, per_kind=1, seed=0)


def test_collecting_lists_what_it_made_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: ImageArrays
) -> None:
    def small(seed: int, sizes: Any, design: Design, architectures: Any, optimizers: Any) -> Recipe:
        return replace(SMALLEST, seed=seed, design=design, data=next(iter(sizes)))

    monkeypatch.setattr(collecting, "draw_recipe", small)
    monkeypatch.setattr(collecting, "load_arrays", lambda name: digits.of_classes([0, 1, 2]))
    made: list[int] = []

    class Enough(Exception):
        pass

    def stop_at(limit: int) -> Any:
        def on_trajectory(count: int, left: float) -> None:
            made.append(count)
            if len(made) == limit:
                raise Enough

        return on_trajectory

    for limit in (1, 2):
        with pytest.raises(Enough):
            collect(tmp_path, ["digits"], 1000, 0, stop_at(limit), design="chain")
    assert made == [1, 2]
    listed = read_json(tmp_path / "manifest.json")
    assert [entry["file"] for entry in listed] == [path.name for path in trajectories(tmp_path)]
    assert [entry["sha256"] for entry in listed] == [sha256_file(path) for path in trajectories(tmp_path)]
    assert listed[1]["recipe"] == asdict(replace(SMALLEST, seed=1))


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("design", {"design": "star"}),
        ("dtype", {"dtype": "float8"}),
        ("optimizer", {"optimizers": ["adamw_torch", "luck"]}),
        ("architecture", {"architectures": ["vit", "perceptron"]}),
    ],
)
def test_collecting_wants_what_there_is(what: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=rf"{what} is .*\(option_invalid\)"):
        collect(tmp_path / "out", ["digits"], 1, 0, lambda made, left: None, **changes)
    assert not (tmp_path / "out").exists()


def test_recipes_are_their_seed_s() -> None:
    sizes = {"digits": 1797, "fashion": 60_000, "wordnet": 116_690}
    assert draw_recipe(3, sizes, "fan", IMAGE_ARCHITECTURES) == draw_recipe(3, sizes, "fan", IMAGE_ARCHITECTURES)
    fans = [draw_recipe(seed, sizes, "fan", IMAGE_ARCHITECTURES) for seed in range(300)]
    assert {recipe.architecture for recipe in fans} == {*IMAGE_ARCHITECTURES, "text-transformer"}
    assert {recipe.data for recipe in fans} == set(sizes)
    assert all((recipe.data == "wordnet") == (recipe.architecture == "text-transformer") for recipe in fans)
    assert all(math.floor(recipe.examples / recipe.rate**LARGER) <= sizes[recipe.data] for recipe in fans)
    chains = [draw_recipe(seed, sizes, "chain", ["vit"]) for seed in range(100)]
    assert all(0.4 <= recipe.rate <= 0.9 and 1e-5 <= recipe.learning_rate <= 4e-3 for recipe in chains)
    assert {recipe.architecture for recipe in chains} == {"vit", "text-transformer"}
    both = [draw_recipe(seed, sizes, "fan", ["vit"], ["adamw_torch", "sgd"]) for seed in range(50)]
    assert {recipe.optimizer for recipe in both} == {"adamw_torch", "sgd"}
    assert 10 < sum(held_out(Path(f"trajectory-{seed:06d}.safetensors")) for seed in range(200)) < 60
