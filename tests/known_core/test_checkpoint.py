"""Checkpoints on disk: single, sharded, wrapped by DistributedDataParallel, broken."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from known_core.checkpoint import Checkpoint, check_same_tensors
from known_core.checkpoint.reader import INDEX, wrapper_prefix
from known_core.errors import KnownError

TENSORS: dict[str, Tensor] = {
    "a.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "a.bias": torch.randn(4, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
    "half": torch.randn(2, 2).half(),
    "steps": torch.tensor(12),
    "mask": torch.tensor([True, False, True]),
    "scalar": torch.tensor(0.25),
    "none": torch.zeros(0, 7),
}


def sharded(folder: Path, tensors: dict[str, Tensor], weight_map: object = None) -> Path:
    """Two shards and an index, as save_pretrained writes them."""
    folder.mkdir()
    files = {
        "model-00001-of-00002.safetensors": list(tensors)[::2],
        "model-00002-of-00002.safetensors": list(tensors)[1::2],
    }
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    found = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": found if weight_map is None else weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def same(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert checkpoint.shapes[name] == tuple(tensor.shape)


def test_single_file_folder_and_other_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_file(TENSORS, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    same(Checkpoint(tmp_path / "a"), TENSORS)
    same(Checkpoint(tmp_path / "a" / "model.safetensors"), TENSORS)
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "other.safetensors")
    same(Checkpoint(tmp_path / "a"), TENSORS)
    same(Checkpoint(tmp_path / "a" / "other.safetensors"), TENSORS)


def test_model_safetensors_wins_over_others(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    assert list(Checkpoint(tmp_path).headers) == ["model.safetensors"]


def test_sharded(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(tmp_path / "s", TENSORS))
    same(checkpoint, TENSORS)
    assert sorted(checkpoint.headers) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    "index",
    [
        "not json",
        "[]",
        "{}",
        '{"weight_map": {"a": "a.safetensors"}}',
        '{"metadata": {}, "weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": null}',
        "[" * 5000,
        '{"weight_map": {"a": []}}',
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_broken_index(tmp_path: Path, index: str) -> None:
    folder = sharded(tmp_path / "s", TENSORS)
    (folder / INDEX).write_text(index)
    with pytest.raises(KnownError, match=r"\(index_invalid\)"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "model.bin", 3]
)
def test_a_shard_path_that_leaves_the_folder(tmp_path: Path, shard: object) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(KnownError, match=r"\(shard_path_invalid\)") as caught:
        Checkpoint(sharded(tmp_path / "s", TENSORS, {"a.weight": shard}))
    assert repr(str(shard)) in caught.value.message


def test_shard_names_of_several_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"\((index|shard_path)_invalid\)"):
        Checkpoint(sharded(tmp_path / "s", TENSORS, {"a": "x.safetensors", "b": 3}))


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "s", TENSORS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(KnownError, match=r"model-00002-of-00002\.safetensors.*\(weights_missing\)"):
        Checkpoint(folder)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "s", TENSORS)
    save_file(TENSORS, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(KnownError, match=r"\(duplicate_tensor\)"):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "m.h5"])
def test_a_folder_with_pickles_alone(tmp_path: Path, name: str) -> None:
    torch.save(TENSORS, tmp_path / name)
    with pytest.raises(KnownError, match=rf"{re.escape(name)}.*\(unsafe_format\)"):
        Checkpoint(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"\(weights_missing\)"):
        Checkpoint(tmp_path / "nowhere")
    with pytest.raises(KnownError, match=r"found 0 .*\(weights_missing\)"):
        Checkpoint(tmp_path)
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(KnownError, match=r"found 2 .*\(weights_missing\)"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_wrapper_prefixes_are_read_through(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in TENSORS.items()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    same(checkpoint, TENSORS)
    assert checkpoint.prefix == prefix
    assert all(name.startswith(prefix) for name in checkpoint.headers["model.safetensors"].tensors)


def test_a_prefix_before_some_names_alone_belongs_to_them() -> None:
    assert wrapper_prefix(["module.a", "b"]) == ""
    assert wrapper_prefix(["module.a", "module._orig_mod.b"]) == "module."
    assert wrapper_prefix([]) == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_finite_names_the_tensor(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(3, 3, dtype=dtype)
    bad[1, 2] = value
    save_file({**TENSORS, "bad.weight": bad}, tmp_path / "model.safetensors")
    with pytest.raises(KnownError, match=r"'bad\.weight'.*\(nonfinite_weights\)"):
        Checkpoint(tmp_path).check_finite()
    save_file(TENSORS, tmp_path / "model.safetensors")
    Checkpoint(tmp_path).check_finite()


def test_all_differences_between_states_in_one_error(tmp_path: Path) -> None:
    a = {"x": torch.zeros(2), "y": torch.zeros(3), "z": torch.zeros(4)}
    states = []
    for index, tensors in enumerate((a, {"x": torch.zeros(2), "y": torch.zeros(3, 1), "w": torch.zeros(1)}, a)):
        save_file(tensors, tmp_path / f"{index}.safetensors")
        states.append(Checkpoint(tmp_path / f"{index}.safetensors"))
    check_same_tensors([states[0], states[2]], ["first", "third"])
    with pytest.raises(KnownError, match=r"\(states_mismatch\)") as caught:
        check_same_tensors(states, ["first", "second", "third"])
    for part in ("second lacks z", "second adds w", "y is [3, 1] in second, [3] in first"):
        assert part in caught.value.message
    assert "third" not in caught.value.message


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    save_file({f"t{index}": torch.zeros(1) for index in range(30)}, tmp_path / "a.safetensors")
    save_file({"u": torch.zeros(1)}, tmp_path / "b.safetensors")
    states = [Checkpoint(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    with pytest.raises(KnownError, match=r"; and 11 more \(states_mismatch\)"):
        check_same_tensors(states, ["a", "b"])
