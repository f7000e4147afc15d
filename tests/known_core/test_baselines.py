"""What KNOW prediction is compared with, against computations by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from known_core import baselines
from known_core.baselines import Continued, MatchedShrink, Mean
from known_core.checkpoint import Checkpoint
from known_core.forgetting import Design
from known_core.hypermodel import HyperModel, Known
from known_core.nowcast import nowcast, predict_tensor
from tests.known_core.conftest import seeded_scale_free

PREDICTED = frozenset({"conv.weight", "conv.bias", "fc.weight", "fc.bias"})
MOVING = PREDICTED | {"norm.weight", "norm.bias"}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "conv.weight": draw(4, 3, 3, 3), "conv.bias": draw(4), "norm.weight": draw(4), "norm.bias": draw(4),
        "norm.running_mean": draw(4), "norm.num_batches_tracked": torch.tensor(seed), "fc.weight": draw(5, 4),
        "fc.bias": draw(5),
    }  # fmt: skip


@pytest.fixture
def states() -> list[dict[str, Tensor]]:
    return [state(seed) for seed in range(5)]


def assert_rest_is_carried(
    found: dict[str, Tensor], theta: dict[str, Tensor], changed: frozenset[str] = PREDICTED
) -> None:
    assert list(found) == list(theta)
    for name in theta.keys() - changed:
        assert torch.equal(found[name], theta[name]), name
        assert found[name].data_ptr() != theta[name].data_ptr()


def test_shrink_scales_matrices_and_leaves_biases_and_norms(states: list[dict[str, Tensor]]) -> None:
    found = baselines.shrink(states[0], 0.8)
    assert_rest_is_carried(found, states[0])
    for name in ("conv.weight", "fc.weight"):
        torch.testing.assert_close(found[name], 0.8 * states[0][name])
    for name in ("conv.bias", "fc.bias"):
        assert torch.equal(found[name], states[0][name])


def test_a_matched_shrink_has_the_candidate_s_norms_and_theta_0_s_directions(states: list[dict[str, Tensor]]) -> None:
    theta, candidate = states[:2]
    theta["fc.bias"] = torch.zeros(5)
    found = baselines.matched_shrink(theta, candidate)
    assert_rest_is_carried(found, theta, MOVING)
    for name in MOVING - {"fc.bias"}:
        assert float(found[name].norm()) == pytest.approx(float(candidate[name].norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), theta[name].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)
    assert torch.equal(found["fc.bias"], torch.zeros(5))  # there is no direction to grow in


def test_shrink_and_perturb_is_its_seed_s(states: list[dict[str, Tensor]]) -> None:
    first, again, other = (baselines.shrink_and_perturb(states[0], 0.5, 0.1, seed) for seed in (0, 0, 1))
    assert_rest_is_carried(first, states[0])
    for name in PREDICTED:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_shrink_and_perturb_adds_noise_of_the_share_asked_for() -> None:
    theta = {
        "fc.weight": 3 * torch.randn(300, 300, generator=torch.Generator().manual_seed(0)),
        "fc.bias": torch.ones(1),
    }
    found = baselines.shrink_and_perturb(theta, 0.5, 0.1, 0)
    noise = found["fc.weight"] - 0.5 * theta["fc.weight"]
    assert float(noise.std() / theta["fc.weight"].std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    assert torch.isfinite(found["fc.bias"]).all()  # one value has no deviation
    quiet = baselines.shrink_and_perturb(theta, 0.5, 0.0, 0)
    torch.testing.assert_close(quiet["fc.weight"], 0.5 * theta["fc.weight"])


@pytest.mark.parametrize("step", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("method", ["linear", "log"])
def test_fits_go_along_numpy_s_least_squares_slope(states: list[dict[str, Tensor]], method: str, step: float) -> None:
    """The line has numpy's slope and goes through Θ_0: so many steps from the state of index 5 to 5 + step."""
    fit = baselines.linear_fit if method == "linear" else baselines.log_fit
    found = fit(states, step)
    assert_rest_is_carried(found, states[0])
    index, target = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 5 + step  # Θ_0 is the latest
    if method == "log":
        index, target = np.log(index), np.log(target)
    for name in PREDICTED:
        values = np.stack([s[name].flatten().numpy() for s in states]).astype(np.float64)
        slope, _ = np.polyfit(index, values, 1)
        expected = values[0] + slope * (target - index[0])
        np.testing.assert_allclose(found[name].flatten().numpy(), expected, atol=1e-5)


def test_a_straight_line_is_continued() -> None:
    theta, step = state(0), state(1)
    line = [{name: theta[name] - k * step[name] for name in theta} for k in range(5)]
    found = baselines.linear_fit(line, 2)
    for name in PREDICTED:
        torch.testing.assert_close(found[name], theta[name] + 2 * step[name], atol=1e-5, rtol=1e-5)


def test_a_task_vector_is_taken_away(states: list[dict[str, Tensor]]) -> None:
    theta, forgotten = states[0], states[4]
    assert all(torch.equal(found, theta[name]) for name, found in baselines.task_vector(theta, forgotten, 0).items())
    found = baselines.task_vector(theta, forgotten, 0.5)
    assert_rest_is_carried(found, theta)
    for name in PREDICTED:
        torch.testing.assert_close(found[name], 1.5 * theta[name] - 0.5 * forgotten[name])


def test_a_singular_task_vector_of_all_directions_is_the_task_vector(states: list[dict[str, Tensor]]) -> None:
    found = baselines.singular_task_vector(states[0], states[4], 0.5, 1.0)
    expected = baselines.task_vector(states[0], states[4], 0.5)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_singular_task_vector_keeps_the_largest_directions_and_whole_biases() -> None:
    theta = {"fc.weight": torch.zeros(4, 4), "fc.bias": torch.zeros(4), "conv.weight": torch.zeros(4, 1, 2, 2)}
    diagonal = torch.diag(torch.tensor([1.0, -8.0, 4.0, 2.0]))
    forgotten = {"fc.weight": diagonal, "fc.bias": torch.ones(4), "conv.weight": diagonal.reshape(4, 1, 2, 2)}
    found = baselines.singular_task_vector(theta, forgotten, 1.0, 0.5)
    kept = torch.diag(torch.tensor([0.0, 8.0, -4.0, 0.0]))
    torch.testing.assert_close(found["fc.weight"], kept)
    torch.testing.assert_close(found["conv.weight"], kept.reshape(4, 1, 2, 2))
    torch.testing.assert_close(found["fc.bias"], -torch.ones(4))
    one = baselines.singular_task_vector(theta, forgotten, 1.0, 0.01)["fc.weight"]
    assert int(torch.linalg.matrix_rank(one)) == 1  # never none


def test_the_mean_is_of_all_states(states: list[dict[str, Tensor]]) -> None:
    found = baselines.mean(states)
    assert_rest_is_carried(found, states[0], MOVING)
    for name in MOVING:
        torch.testing.assert_close(found[name], sum((s[name] for s in states[1:]), states[0][name]) / 5)


def test_dtypes_stay(states: list[dict[str, Tensor]]) -> None:
    half = [{n: t.half() if t.is_floating_point() else t for n, t in s.items()} for s in states]
    for found in (
        baselines.shrink(half[0], 0.5), baselines.mean(half), baselines.linear_fit(half, 1),
        baselines.matched_shrink(half[0], half[1]), baselines.shrink_and_perturb(half[0], 0.5, 0.1, 0),
        baselines.task_vector(half[0], half[4], 0.5),
    ):  # fmt: skip
        assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in half[0].items()}


# --- the controls of a job, on files -----------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path, states: list[dict[str, Tensor]]) -> list[Checkpoint]:
    for index, tensors in enumerate(states):
        (tmp_path / f"state-{index}").mkdir()
        save_file(tensors, tmp_path / f"state-{index}" / "model.safetensors", metadata={"format": "pt"})
    return [Checkpoint(tmp_path / f"state-{index}") for index in range(5)]


def written(states: list[Checkpoint], control: HyperModel, out: Path) -> dict[str, Tensor]:
    nowcast(states, control, [out], 0.5)
    return load_file(out / "model.safetensors")


BUFFERS = {"norm.running_mean", "norm.num_batches_tracked"}


def test_continued_is_the_fan_s_first_state(
    tmp_path: Path, checkpoints: list[Checkpoint], states: list[dict[str, Tensor]]
) -> None:
    found = written(checkpoints[:2], Continued(), tmp_path / "out")
    for name, tensor in found.items():
        assert torch.equal(tensor, states[0 if name in BUFFERS else 1][name]), name


@pytest.mark.parametrize("design", ["chain", "fan"])
def test_the_mean_control_takes_norms_along(
    tmp_path: Path, checkpoints: list[Checkpoint], states: list[dict[str, Tensor]], design: Design
) -> None:
    control = Mean(design)
    assert control.design == design
    for name, tensor in written(checkpoints, control, tmp_path / "out").items():
        mean = torch.stack([s[name] for s in states]).float().mean(0)
        torch.testing.assert_close(tensor, states[0][name] if name in BUFFERS else mean)


@pytest.mark.parametrize("design", ["chain", "fan"])
def test_the_shrink_control_has_the_norms_of_the_last_prediction(
    tmp_path: Path, checkpoints: list[Checkpoint], states: list[dict[str, Tensor]], design: Design
) -> None:
    torch.manual_seed(0)
    known: HyperModel = Known().eval() if design == "chain" else seeded_scale_free()
    found = written(checkpoints, MatchedShrink(known, 2), tmp_path / "out")
    nowcast(checkpoints, known, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    predicted = load_file(tmp_path / "x4" / "model.safetensors")
    assert MatchedShrink(known, 2).design == known.design == design
    for name, theta in states[0].items():
        if torch.equal(predicted[name], theta):
            assert torch.equal(found[name], theta), name
            continue
        factor = float(predicted[name].norm() / theta.norm())
        assert factor != 1
        torch.testing.assert_close(found[name], factor * theta, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["norm.weight"], states[0]["norm.weight"]) == (design == "chain")


def test_controls_give_as_many_predictions_as_asked_for(states: list[dict[str, Tensor]]) -> None:
    tensors = [s["fc.weight"].bfloat16() for s in states]
    controls: list[HyperModel] = [Continued(), Mean("fan"), MatchedShrink(seeded_scale_free(), 1)]
    for control in controls:
        found = predict_tensor(control, "fc", tensors[: control.states], 0.5, 3)
        assert [prediction.dtype for prediction in found] == [torch.float32] * 3
        assert [prediction.shape for prediction in found] == [(5, 4)] * 3
