"""KNOWN against the authors' released weights, and as a file."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from known_core.errors import KnownError
from known_core.hypermodel import Known
from known_core.kinds import Kind

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
RELEASED: dict[Kind, str] = {"conv": "Conv", "fc": "FC", "bias": "Bias"}
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the authors' files are not in {REFERENCE}; they have no licence to ship with"
)


def seeded() -> Known:
    torch.manual_seed(0)
    return Known().eval()


def released() -> Known:
    return Known.from_keras({kind: REFERENCE / f"KNOWN_{name}.h5" for kind, name in RELEASED.items()})


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_has_the_paper_s_9425_parameters(kind: Kind) -> None:
    assert sum(parameter.numel() for parameter in Known().networks[kind].parameters()) == 9425


@needs_reference
@pytest.mark.parametrize("kind", get_args(Kind))
@torch.inference_mode()
def test_the_released_weights_give_the_reference_s_outputs(kind: Kind) -> None:
    with np.load(REFERENCE / "known_golden.npz") as golden:
        history, expected = torch.from_numpy(golden["x"]), torch.from_numpy(golden[RELEASED[kind]]).squeeze(1)
    torch.testing.assert_close(released().residual(kind, history), expected, atol=1e-6, rtol=0)


@needs_reference
@pytest.mark.parametrize("kind", get_args(Kind))
@torch.inference_mode()
def test_a_keras_import_survives_save_and_load(kind: Kind, tmp_path: Path) -> None:
    known, history = released(), torch.randn(50, 5)
    known.save(tmp_path / "k.safetensors")
    again = Known.load(tmp_path / "k.safetensors")
    assert again.metadata["name"] == "keras-import"
    assert torch.equal(again.residual(kind, history), known.residual(kind, history))


@needs_reference
def test_a_keras_import_wants_all_three_kinds_and_the_authors_layers(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"\(hypermodel_invalid\)"):
        Known.from_keras({"conv": REFERENCE / "KNOWN_Conv.h5"})
    (tmp_path / "other.h5").write_text("not HDF5")
    files: dict[Kind, Path] = dict.fromkeys(get_args(Kind), tmp_path / "other.h5")
    with pytest.raises(KnownError, match=r"other\.h5 .*\(hypermodel_invalid\)"):
        Known.from_keras(files)


# Made by this test's own code: torch.manual_seed(0), five histories a kind. A change of layer order, slope, clamp
# or of which differences are taken moves them.
GOLDEN: dict[Kind, list[float]] = {
    "conv": [-0.078433, -0.0753876, -0.0756317, -0.0456985, -0.2092793],
    "fc": [-0.1925819, -0.2014061, -0.1959384, -0.200695, -1.0],
    "bias": [-0.0984064, -0.0615724, -0.110184, -0.0214475, -0.6578743],
}


@pytest.mark.parametrize("kind", get_args(Kind))
@torch.inference_mode()
def test_golden_residuals(kind: Kind) -> None:
    history = torch.tensor([
        [0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5], [-0.5, 0.4, -0.3, 0.2, -0.1],
        [1.0, 1.0, 1.0, 1.0, 1.0], [3.0, -2.0, 1.0, -4.0, 2.0],
    ])  # fmt: skip
    expected = torch.tensor(GOLDEN[kind])
    torch.testing.assert_close(seeded().residual(kind, history), expected, atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_a_weight_s_residual_does_not_depend_on_its_batch() -> None:
    known, history = seeded(), torch.randn(1000, 5)
    whole = known.residual("fc", history)
    alone = torch.cat([known.residual("fc", row[None]) for row in history[:50]])
    torch.testing.assert_close(whole[:50], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(known.residual("fc", history.flip(0)).flip(0), whole, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_kinds_and_order_of_states_matter() -> None:
    known, history = seeded(), torch.randn(20, 5)
    assert not torch.allclose(known.residual("fc", history), known.residual("conv", history))
    assert not torch.allclose(known.residual("fc", history), known.residual("fc", history.flip(1)))


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e20, 1e30, 1e38])
@torch.inference_mode()
def test_huge_weights_of_mixed_signs_stay_bounded(scale: float) -> None:
    history = torch.randn(500, 5, generator=torch.Generator().manual_seed(1)).clamp(-3, 3) * scale
    for kind in get_args(Kind):
        residual = seeded().residual(kind, history)
        assert torch.isfinite(residual).all()
        assert residual.abs().max() <= 1


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 6), (2, 5, 1)])
def test_a_history_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(KnownError, match=r"\(history_shape\)") as caught:
        Known().residual("conv", torch.zeros(shape))
    assert str(shape) in caught.value.message


@torch.inference_mode()
def test_save_and_load_keep_weights_and_metadata(tmp_path: Path) -> None:
    torch.manual_seed(3)
    known = Known({"name": "mine", "note": "é"})
    known.save(tmp_path / "new" / "k.safetensors")
    again = Known.load(tmp_path / "new" / "k.safetensors")
    assert again.metadata == {"name": "mine", "note": "é"}
    assert not again.training
    for name, tensor in known.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["k.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """Manifests and stage keys hold the file's sha256."""
    known = Known({"name": "mine", "recipes_sha256": "0", "note": "x"})
    contents = set()
    for index in range(8):
        known.save(tmp_path / f"{index}.safetensors")
        contents.add((tmp_path / f"{index}.safetensors").read_bytes())
    Known.load(tmp_path / "0.safetensors").save(tmp_path / "again.safetensors")
    contents.add((tmp_path / "again.safetensors").read_bytes())
    assert len(contents) == 1


def test_files_that_are_not_hyper_models(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("some text, longer than eight bytes")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "claims.safetensors", metadata={"known": "known-hypermodel-1"})
    for name in ("missing", "text", "empty", "model", "claims"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(KnownError, match=r"\(hypermodel_invalid\)") as caught:
            Known.load(path)
        assert str(path) in caught.value.message
