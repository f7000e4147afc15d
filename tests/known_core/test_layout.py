"""Predicted checkpoints in other files than Θ_0's, and of every kind of tensor."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.reader import INDEX
from known_core.errors import KnownError
from known_core.hypermodel import HyperModel, Known
from known_core.nowcast import nowcast, predicted_kinds
from tests.known_core.conftest import seeded_scale_free


@pytest.fixture(params=["chain", "fan"])
def known(request: pytest.FixtureRequest) -> HyperModel:
    torch.manual_seed(0)
    return Known().eval() if request.param == "chain" else seeded_scale_free()


def write(
    folder: Path, tensors: Mapping[str, Tensor], file: str = "model.safetensors", **beside: str
) -> list[Checkpoint]:
    """Five states around the tensors, each with the files named beside the weights."""
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        path = folder / f"state-{index}"
        path.mkdir(parents=True)
        state = {
            name: (tensor + 1e-2 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
            if tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else tensor
            for name, tensor in tensors.items()
        }  # fmt: skip
        save_file(state, path / file, metadata={"format": "pt", "note": "ü"})
        for name, text in beside.items():
            (path / name.replace("_json", ".json")).write_text(text)
    return [Checkpoint(folder / f"state-{index}") for index in range(5)]


def layers(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"layer.{index}.weight": torch.randn(25, 10, generator=generator) for index in range(count)}  # 1,000 bytes


def read(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_file_to_shards_and_shards_to_other_shards_and_back(tmp_path: Path, known: HyperModel) -> None:
    states = write(tmp_path, layers(), config_json="{}")
    nowcast(states, known, [tmp_path / "one"], 0.5)
    nowcast(states, known, [tmp_path / "shards"], 0.5, max_shard_size="2KB")
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    shards = [f"model-0000{index}-of-00003.safetensors" for index in (1, 2, 3)]
    assert names == ["config.json", *shards, INDEX]
    index = json.loads((tmp_path / "shards" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 6_000}
    assert index["weight_map"]["layer.2.weight"] == shards[1]
    assert equal(read(tmp_path / "shards"), read(tmp_path / "one"))
    for shard in shards:
        with safe_open(tmp_path / "shards" / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "note": "ü"}
    again = [Checkpoint(tmp_path / "shards") for _ in range(5)]  # from shards; nothing moves, so neither do they
    nowcast(again, known, [tmp_path / "other"], 0.5, max_shard_size="3KB")
    assert len(list((tmp_path / "other").glob("*-of-00002.safetensors"))) == 2
    nowcast(again, known, [tmp_path / "single"], 0.5, max_shard_size="1GB")
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == ["config.json", "model.safetensors"]
    assert equal(read(tmp_path / "single"), read(tmp_path / "other"))


def test_what_the_index_says_besides_is_kept(tmp_path: Path, known: HyperModel) -> None:
    nowcast(write(tmp_path, layers()), known, [tmp_path / "shards"], 0.5, max_shard_size="2KB")
    index = json.loads((tmp_path / "shards" / INDEX).read_text())
    index["metadata"]["total_parameters"] = 1_500
    (tmp_path / "shards" / INDEX).write_text(json.dumps(index))
    nowcast([Checkpoint(tmp_path / "shards")] * 5, known, [tmp_path / "out"], 0.5, max_shard_size="3KB")
    found = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]
    assert found == {"total_size": 6_000, "total_parameters": 1_500}


def test_a_tensor_above_the_limit_is_a_shard_of_its_own(tmp_path: Path, known: HyperModel) -> None:
    states = write(tmp_path, {**layers(2), "large.weight": torch.ones(100, 100)})
    nowcast(states, known, [tmp_path / "out"], 0.5, max_shard_size="2KB")
    sizes = sorted(path.stat().st_size > 40_000 for path in (tmp_path / "out").glob("*.safetensors"))
    assert sizes == [False, True]


@pytest.mark.parametrize("size", ["", "5", "5 apples", "GB"])
def test_a_size_that_cannot_be_read(tmp_path: Path, known: HyperModel, size: str) -> None:
    with pytest.raises(KnownError, match=rf"'{size}'.*\(option_invalid\)"):
        nowcast(write(tmp_path, layers()), known, [tmp_path / "out"], 0.5, max_shard_size=size)
    assert not (tmp_path / "out").exists()


def test_transformers_loads_the_shards(tmp_path: Path, known: HyperModel) -> None:
    config: Any = transformers.AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    states = []
    for seed in range(5):
        torch.manual_seed(seed)
        transformers.BertForMaskedLM(config).save_pretrained(tmp_path / f"{seed}")
        states.append(Checkpoint(tmp_path / f"{seed}"))
    nowcast(states, known, [tmp_path / "out"], 0.5, max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    loaded: Any = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = read(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        if name in expected:
            assert torch.equal(tensor, expected[name])


def test_an_adapter_is_predicted_like_any_other_model(tmp_path: Path, known: HyperModel) -> None:
    names = [f"base_model.model.encoder.{layer}.query.lora_{side}.weight" for layer in range(2) for side in "AB"]
    tensors = {name: torch.randn(4, 16) if "_A" in name else torch.randn(16, 4) for name in names}
    states = write(tmp_path, tensors, "adapter_model.safetensors", adapter_config_json='{"r": 4}')
    counts = nowcast(states, known, [tmp_path / "out"], 0.5)
    assert counts == {"conv": 0, "fc": 256, "bias": 0, "carried": 0}
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {"r": 4}
    found, theta = load_file(tmp_path / "out" / "adapter_model.safetensors"), read(tmp_path / "state-0")
    assert not any(torch.equal(found[name], theta[name]) for name in names)


def shapes_and_dtypes() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = {
        f"{rank}d.{str(dtype).removeprefix('torch.')}.weight": torch.randn([3] * rank, generator=generator).to(dtype)
        for rank in range(6)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    others = {
        "empty.weight": torch.zeros(0, 7), "steps": torch.tensor(7), "ids": torch.arange(5),
        "mask": torch.tensor([True]),
        "bytes": torch.arange(9, dtype=torch.uint8), "float8.weight": torch.ones(3, 3).to(torch.float8_e4m3fn),
        "complex": torch.ones(3, dtype=torch.complex64),
    }  # fmt: skip
    return floats | others


def test_every_rank_and_dtype(tmp_path: Path, known: HyperModel) -> None:
    tensors = shapes_and_dtypes()
    states = write(tmp_path, tensors)
    nowcast(states, known, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    theta, kinds = load_file(tmp_path / "state-0" / "model.safetensors"), predicted_kinds(states[0], known)
    assert kinds["2d.bfloat16.weight"] == "fc"
    assert {kinds[f"{rank}d.float64.weight"] for rank in (3, 4, 5)} == {"conv"}
    for output in ("x2", "x4"):
        found = load_file(tmp_path / output / "model.safetensors")
        for name, tensor in theta.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            if name not in kinds:
                assert (
                    found[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
                )


def tied(equal: bool) -> dict[str, Tensor]:
    embedding = torch.randn(20, 6)
    head = embedding.clone() if equal else embedding + 1
    return {"model.embed_tokens.weight": embedding, "model.q.weight": torch.randn(6, 6), "lm_head.weight": head}


def save_tied(folder: Path, states: Sequence[Mapping[str, Tensor]]) -> list[Checkpoint]:
    for index, state in enumerate(states):
        (folder / f"{index}").mkdir()
        save_file(dict(state), folder / f"{index}" / "model.safetensors")
    return [Checkpoint(folder / f"{index}") for index in range(5)]


def test_weights_that_are_tied_stay_equal(tmp_path: Path, known: HyperModel) -> None:
    torch.manual_seed(0)
    nowcast(save_tied(tmp_path, [tied(True) for _ in range(5)]), known, [tmp_path / "out"], 0.5)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_an_output_layer_of_its_own_is_predicted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = save_tied(tmp_path, [tied(False) for _ in range(5)])
    assert predicted_kinds(states[0], Known()) == {"model.q.weight": "fc", "lm_head.weight": "fc"}
