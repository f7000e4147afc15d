"""Weight changes, tensor by tensor, against numpy on whole tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from known_core import changes as module
from known_core.changes import weight_changes
from known_core.checkpoint import Checkpoint
from known_core.kinds import Kind

KINDS: dict[str, Kind] = {"a.weight": "fc", "a.bias": "bias", "zero": "bias", "still.weight": "conv"}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file(tensors, path, metadata={"format": "pt"})
    return Checkpoint(path)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    generator = torch.Generator().manual_seed(0)
    before = {
        "a.weight": torch.randn(40, 30, generator=generator), "a.bias": torch.randn(40, generator=generator),
        "zero": torch.zeros(5), "still.weight": torch.ones(2, 2, 3, 3), "a.running_mean": torch.ones(4),
    }  # fmt: skip
    after = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in before.items()}
    after["still.weight"] = before["still.weight"]
    return saved(tmp_path / "before.safetensors", before), saved(tmp_path / "after.safetensors", after)


def test_quantiles_histogram_and_size(pair: tuple[Checkpoint, Checkpoint]) -> None:
    before, after = pair
    found = weight_changes(before, after, KINDS)
    assert found["left_out"] == 0
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert tensors.keys() == KINDS.keys()
    given, changed = before.read("a.weight").double().numpy(), after.read("a.weight").double().numpy()
    size = np.sqrt((given**2).mean())
    relative = (changed - given) / size
    weight = tensors["a.weight"]
    assert (weight["kind"], weight["weights"]) == ("fc", 1200)
    assert weight["size"] == pytest.approx(size)
    assert weight["change"] == pytest.approx(np.sqrt((relative**2).mean()))
    assert list(weight["quantiles"].values()) == pytest.approx(np.quantile(relative, module.QUANTILES))
    assert sum(weight["histogram"]["counts"]) == 1200
    assert (weight["histogram"]["low"], weight["histogram"]["high"]) == pytest.approx((relative.min(), relative.max()))
    assert tensors["zero"]["histogram"] is None
    assert tensors["still.weight"]["change"] == 0
    assert sum(tensors["still.weight"]["histogram"]["counts"]) == 36


def test_of_what_is_large_a_part_is_looked_at(
    pair: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weight_changes(*pair, {"a.weight": "fc"})["tensors"][0]
    monkeypatch.setattr(module, "_SAMPLE", 480)
    part = weight_changes(*pair, {"a.weight": "fc"})["tensors"][0]
    assert sum(part["histogram"]["counts"]) == 480
    assert part["weights"] == 1200
    assert part["change"] == pytest.approx(whole["change"], rel=0.15)
    monkeypatch.setattr(module, "_MOST_TENSORS", 2)
    found = weight_changes(*pair, KINDS)
    assert ([tensor["name"] for tensor in found["tensors"]], found["left_out"]) == (["a.bias", "zero"], 2)
