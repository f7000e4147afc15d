"""The scale-free hyper-model: what it may depend on and what it may not, and as a file."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from known_core.errors import KnownError
from known_core.hypermodel import Known
from known_core.hypermodels import load_hypermodel
from known_core.kernels.eager import _CHUNK
from known_core.kinds import Kind, kind_of_moving
from known_core.nowcast import predict_tensor
from known_core.scale_free import STATISTICS, ScaleFreeKnown, scaled, statistics
from tests.known_core.conftest import seeded_scale_free

KINDS = get_args(Kind)


def fan(*shape: int, seed: int = 0, step: float = 0.02) -> list[Tensor]:
    """Θ_0 and four states around it, the later ones ever farther away."""
    generator = torch.Generator().manual_seed(seed)
    theta = 0.3 * torch.randn(shape, generator=generator)
    return [theta, *(theta + step * 1.5**k * torch.randn(shape, generator=generator) for k in range(4))]


def displacement(known: ScaleFreeKnown, states: list[Tensor], kind: Kind = "fc", step: int = 1) -> Tensor:
    return predict_tensor(known, kind, states, 0.5, step)[-1] - states[0]


def assert_close_displacements(found: Tensor, expected: Tensor) -> None:
    """Within a thousandth of the largest displacement: the weights themselves are far larger."""
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_negated_states_give_the_negated_prediction(kind: Kind) -> None:
    known, states = seeded_scale_free(), fan(20, 30)
    expected = predict_tensor(known, kind, states, 0.5, 3)
    for found, step in zip(predict_tensor(known, kind, [-state for state in states], 0.5, 3), expected, strict=True):
        assert torch.equal(found, -step)
        assert not torch.equal(step, states[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [7.0, 1e-3])
def test_states_on_another_scale_give_the_prediction_on_that_scale(kind: Kind, factor: float) -> None:
    known, states = seeded_scale_free(), fan(20, 30)
    found = displacement(known, [factor * state for state in states], kind, 2) / factor
    assert_close_displacements(found, displacement(known, states, kind, 2))


def test_weights_are_treated_alike_wherever_they_stand() -> None:
    known, states = seeded_scale_free(), fan(20, 30)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    shuffled = displacement(known, [state.flatten()[order] for state in states])
    assert_close_displacements(shuffled, displacement(known, states).flatten()[order])


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_predicts_theta_0_exactly(kind: Kind) -> None:
    states = fan(4, 5, 6)
    for prediction in predict_tensor(ScaleFreeKnown(), kind, states, 0.5, 3):
        assert torch.equal(prediction, states[0])


def test_a_tensor_that_did_not_move_stays() -> None:
    still = [fan(3, 4)[0]] * 5
    for prediction in predict_tensor(seeded_scale_free(), "fc", still, 0.5, 3):
        assert torch.equal(prediction, still[0])


def test_chunks_do_not_show() -> None:
    """A tensor of two and a half chunks whose parts are copies of one another is predicted as copies."""
    part = fan(_CHUNK // 2)
    known = seeded_scale_free()
    whole = predict_tensor(known, "fc", [state.repeat(5).reshape(5, -1) for state in part], 0.5, 2)
    for prediction in whole:
        assert prediction.shape == (5, _CHUNK // 2)
        for row in prediction[1:]:
            torch.testing.assert_close(row, prediction[0], atol=1e-7, rtol=1e-6)
        assert not torch.allclose(prediction[0], part[0], atol=1e-5)


def test_each_recurrence_is_a_prediction_of_its_own() -> None:
    known, states = seeded_scale_free(), fan(6, 7)
    three = predict_tensor(known, "fc", states, 0.5, 3)
    assert not torch.allclose(three[0], three[1], atol=1e-6, rtol=0)
    assert not torch.allclose(three[1], three[2], atol=1e-6, rtol=0)
    for fewer, prediction in zip(predict_tensor(known, "fc", states, 0.5, 2), three, strict=False):
        assert torch.equal(fewer, prediction)
    assert not torch.allclose(predict_tensor(known, "fc", states, 0.7, 1)[0], three[0], atol=1e-6, rtol=0)


def test_kinds_have_networks_of_their_own() -> None:
    known, states = seeded_scale_free(), fan(6, 7)
    assert not torch.allclose(displacement(known, states, "fc"), displacement(known, states, "conv"), atol=1e-6, rtol=0)


def test_the_prediction_is_its_coefficients_times_displacements_and_weight() -> None:
    """With constant coefficients the method is a weighted sum in the tensor's own units, step and weight alike."""
    known, states = ScaleFreeKnown(), fan(50)
    coefficients = torch.tensor([0.5, -0.25, 0.125, 2.0, -0.1])
    with torch.no_grad():
        known.networks["bias"].get_parameter("head.bias").copy_(coefficients)
    first, size = (states[1] - states[0]).square().mean().sqrt(), states[0].square().mean().sqrt()
    moved = sum(float(c) * (state - states[0]) for c, state in zip(coefficients[:4], states[1:], strict=True))
    expected = states[0] + moved - 0.1 * first / size * states[0]
    torch.testing.assert_close(predict_tensor(known, "bias", states, 0.5, 1)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_states_of_other_dtypes_are_read_as_float32(dtype: torch.dtype) -> None:
    known, states = seeded_scale_free(), [state.to(dtype) for state in fan(6, 7)]
    found = predict_tensor(known, "fc", states, 0.5, 1)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, predict_tensor(known, "fc", [state.float() for state in states], 0.5, 1)[0])
    assert not torch.equal(found, states[0].float())


@pytest.mark.parametrize("shape", [(1,), (), (1, 1), (8, 9)])
@pytest.mark.parametrize("scale", [1e6, 1e30, 1e-20, 0.0])
def test_extreme_weights_give_finite_predictions(shape: tuple[int, ...], scale: float) -> None:
    known = seeded_scale_free(size=0.5)
    states = [scale * state for state in fan(*shape)]
    for prediction in predict_tensor(known, "fc", states, 0.5, 4):
        assert prediction.shape == shape
        assert torch.isfinite(prediction).all()
    if scale == 0:
        assert not prediction.any()


def test_a_first_state_that_alone_did_not_move_gives_theta_0() -> None:
    """There is no unit to measure the other displacements in."""
    states = fan(5, 5)
    states[1] = states[0]
    assert torch.equal(predict_tensor(seeded_scale_free(), "fc", states, 0.5, 1)[0], states[0])


def test_a_weight_far_beyond_the_others_stays_finite() -> None:
    states = fan(100)
    for index, state in enumerate(states):
        state[0] = (-1) ** index * 1e6
    prediction = predict_tensor(seeded_scale_free(size=0.5), "fc", states, 0.5, 1)[0]
    assert torch.isfinite(prediction).all()


def test_statistics_of_two_weights_by_hand() -> None:
    """θ = (3, 4); displacements (1, 0), (0, 2), (2, 2), (-1, 0)."""
    theta = torch.tensor([3.0, 4.0])
    moved = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0], [-1.0, 0.0]])
    features, unit, size = statistics(moved, theta, 0.25, 3)
    assert features.shape == (STATISTICS,)
    assert features.dtype == unit.dtype == size.dtype == torch.float32
    assert float(unit) == pytest.approx(math.sqrt(1 / 2))
    assert float(size) == pytest.approx(math.sqrt(25 / 2))
    half = math.sqrt(0.5)
    assert features.tolist() == pytest.approx([
        math.log(1 / 5) / 5,  # step over weight
        math.log(2), math.log(math.sqrt(8)), 0.0,  # sizes over that of the first
        0.0, half, -1.0,  # the first with the others
        half, 0.0,  # the second with the third and fourth
        -half,  # the third with the fourth
        3 / 5,  # the first with θ
        math.log(2) / 10, 2.0, 6.0,  # weights; log2 of 1/r and of the multiple
    ], abs=1e-6)  # fmt: skip


def test_scaled_puts_a_weight_s_inputs_in_a_row() -> None:
    moved, theta = torch.arange(8.0).reshape(4, 2), torch.tensor([10.0, -10.0])
    rows = scaled(moved, theta, torch.tensor(2.0), torch.tensor(5.0))
    assert rows.tolist() == [[0.0, 1.0, 2.0, 3.0, 2.0], [0.5, 1.5, 2.5, 3.5, -2.0]]


def test_normalisation_and_embeddings_are_predicted() -> None:
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (4,), "embed.weight": (6, 4), "norm.running_mean": (4,)}
    found = [ScaleFreeKnown().kind_of(name, shapes, "F32") for name in shapes]
    assert found == ["bias", "fc", None] == [kind_of_moving(name, shapes, "F32") for name in shapes]


def test_save_and_load_keep_predictions_metadata_and_bytes(tmp_path: Path) -> None:
    known = seeded_scale_free()
    known.metadata = {"name": "mine", "note": "é", "recipes_sha256": "0"}
    known.save(tmp_path / "new" / "k.safetensors")
    again = load_hypermodel(tmp_path / "new" / "k.safetensors")
    assert isinstance(again, ScaleFreeKnown)
    assert again.metadata == known.metadata
    assert not again.training
    states = fan(5, 6)
    again.engine = known.engine
    for kind in KINDS:
        assert torch.equal(
            predict_tensor(again, kind, states, 0.5, 1)[0], predict_tensor(known, kind, states, 0.5, 1)[0]
        )
    for index in range(8):  # manifests and stage keys hold the file's sha256
        again.save(tmp_path / "again.safetensors")
        same = (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "new" / "k.safetensors").read_bytes()
        assert same, f"save {index}"


def test_files_of_each_design_are_loaded_as_theirs(tmp_path: Path, hypermodel_file: Path, fan_file: Path) -> None:
    assert isinstance(load_hypermodel(hypermodel_file), Known)
    assert isinstance(load_hypermodel(fan_file), ScaleFreeKnown)
    assert (load_hypermodel(hypermodel_file).design, load_hypermodel(fan_file).design) == ("chain", "fan")


def test_files_that_are_not_hyper_models(tmp_path: Path, hypermodel_file: Path) -> None:
    (tmp_path / "text.safetensors").write_text("some text, longer than eight bytes")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "claims.safetensors", metadata={"known": "known-scale-free-1"})
    state = seeded_scale_free().state_dict()
    state["networks.fc.head.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "shape.safetensors", metadata={"known": "known-scale-free-1"})
    for name in ("missing", "text", "empty", "model", "claims", "shape"):
        path = tmp_path / f"{name}.safetensors"
        for load in (ScaleFreeKnown.load, load_hypermodel):
            with pytest.raises(KnownError, match=r"\(hypermodel_invalid\)") as caught:
                load(path)
            assert str(path) in caught.value.message
    with pytest.raises(KnownError, match=r"\(hypermodel_invalid\)"):
        ScaleFreeKnown.load(hypermodel_file)
