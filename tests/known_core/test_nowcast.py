"""Predicted checkpoints: against a plain-loop reimplementation, and byte by byte where tensors are carried over."""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
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
from known_core.files import read_json
from known_core.hypermodel import HyperModel, Known, KnownNetwork
from known_core.kinds import Kind
from known_core.manifest import verify_manifest
from known_core.nowcast import nowcast, predict_states, predict_tensor
from known_core.nowcast_files import nowcast_files
from tests.known_core.conftest import seeded_scale_free

KINDS: dict[str, Kind | None] = {
    "z.weight": "conv", "z.bias": "bias", "norm.weight": None, "norm.bias": None, "norm.running_mean": None,
    "norm.num_batches_tracked": None, "fc.weight": "fc", "fc.bias": "bias", "embed.weight": None, "none.weight": None,
}  # fmt: skip


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (0.3 * torch.randn(*shape, generator=generator)).to(dtype)

    return {
        "z.weight": draw(4, 3, 3, 3), "z.bias": draw(4), "norm.weight": draw(4), "norm.bias": draw(4),
        "norm.running_mean": draw(4), "norm.num_batches_tracked": torch.tensor(seed), "fc.weight": draw(5, 7),
        "fc.bias": draw(5), "embed.weight": draw(6, 4), "none.weight": torch.zeros(0, 3, dtype=dtype),
    }  # fmt: skip


def write_states(folder: Path, dtype: torch.dtype = torch.float32, prefix: str = "") -> list[Path]:
    """Five checkpoint folders, Θ_0 first, each with files beside the weights."""
    paths = []
    for seed in range(5):
        path = folder / f"state-{seed}"
        (path / "sub").mkdir(parents=True)
        stored = {prefix + name: tensor for name, tensor in tensors(seed, dtype).items()}
        save_file(stored, path / "model.safetensors", metadata={"epoch": str(seed)})
        (path / "config.json").write_text(f'{{"state": {seed}}}')
        (path / "sub" / "labels.txt").write_text(f"{seed}")
        paths.append(path)
    return paths


@pytest.fixture
def known() -> Known:
    torch.manual_seed(0)
    return Known().eval()


def plain_residual(network: KnownNetwork, history: list[float]) -> float:
    """KNOWN for one weight in Python floats, written from docs/know-method.md alone."""

    def linear(name: str, values: list[float]) -> list[float]:
        layer = network.get_submodule(name)
        weight, bias = layer.get_parameter("weight").tolist(), layer.get_parameter("bias").tolist()
        return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    features: list[float] = []
    differences = [later - earlier for earlier, later in pairwise(history)]
    for stream, values in (("values", history), ("differences", differences)):
        h = linear(f"{stream}.expand", values)
        z = [max(0.0, value) for value in linear(f"{stream}.squeeze", h)]
        gate = [math.exp(e * v) for e, v in zip(linear(f"{stream}.exponent", z), h, strict=True)]
        added, factor = linear(f"{stream}.additive", z), linear(f"{stream}.multiplier", z)
        h = [a + m * g for a, m, g in zip(added, factor, gate, strict=True)]
        features += [value if value > 0 else 0.3 * value for value in linear(f"{stream}.features", h)]
    return math.tanh(linear("head", features)[0])


def plain_prediction(known: Known, kind: Kind, states: Sequence[Tensor], steps: int) -> list[Tensor]:
    network = known.networks[kind]
    assert isinstance(network, KnownNetwork)
    columns = [state.reshape(-1).tolist() for state in states]
    found: list[list[float]] = [[] for _ in range(steps)]
    for values in zip(*columns, strict=True):
        window = list(reversed(values))  # the most forgotten state first, Θ_0 last
        for step in range(steps):
            predicted = window[-1] + plain_residual(network, window)
            found[step].append(predicted)
            window = [*window[1:], predicted]
    return [torch.tensor(values).reshape(states[0].shape) for values in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_tensor_is_the_plain_recurrence_or_theta_0_s(tmp_path: Path, known: Known, dtype: torch.dtype) -> None:
    paths = write_states(tmp_path, dtype)
    outputs = [tmp_path / name for name in ("x2", "x4", "x8")]
    counts = nowcast([Checkpoint(path) for path in paths], known, outputs, 0.5)
    assert counts == {"conv": 108, "fc": 35, "bias": 9, "carried": 37}
    states = [load_file(path / "model.safetensors") for path in paths]
    written = [load_file(output / "model.safetensors") for output in outputs]
    for name, kind in KINDS.items():
        theta = states[0][name]
        if kind is None:
            for output in written:
                assert output[name].dtype == theta.dtype
                assert torch.equal(output[name], theta)
            continue
        expected = plain_prediction(known, kind, [state[name] for state in states], 3)
        for output, tensor in zip(written, expected, strict=True):
            assert output[name].dtype == dtype
            tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
            torch.testing.assert_close(output[name].float(), tensor, atol=tolerance, rtol=tolerance)
        assert not torch.equal(written[0][name], theta)
        assert not torch.equal(written[1][name], written[0][name])


def test_a_step_is_small_where_the_hyper_model_says_nothing(tmp_path: Path, known: Known) -> None:
    """With a head of zeros the residual is zero, so that every output is Θ_0 bit for bit."""
    with torch.no_grad():
        for network in known.networks.values():
            for parameter in network.get_submodule("head").parameters():
                parameter.zero_()
    paths = write_states(tmp_path, torch.bfloat16)
    nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    for name, tensor in load_file(paths[0] / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "x4" / "model.safetensors")[name], tensor)


def test_chunks_do_not_show(known: Known) -> None:
    states = [torch.randn(3, 16_385, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    whole = predict_tensor(known, "fc", states, 0.5, 2)
    part = predict_tensor(known, "fc", [state[2, -5:] for state in states], 0.5, 2)
    for tensor, few in zip(whole, part, strict=True):
        assert tensor.shape == (3, 16_385)
        torch.testing.assert_close(tensor[2, -5:], few, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("design", ["chain", "fan"])
def test_state_dicts_in_memory_are_predicted_like_files(
    tmp_path: Path, known: Known, design: str, dtype: torch.dtype
) -> None:
    model: HyperModel = known if design == "chain" else seeded_scale_free()
    paths = write_states(tmp_path, dtype)
    nowcast([Checkpoint(path) for path in paths], model, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    found = predict_states(model, [load_file(path / "model.safetensors") for path in paths], 0.5, 2)
    for name, state in zip(("x2", "x4"), found, strict=True):
        written = load_file(tmp_path / name / "model.safetensors")
        assert state.keys() == written.keys()
        for tensor_name, tensor in written.items():
            assert state[tensor_name].dtype == tensor.dtype
            assert torch.equal(state[tensor_name], tensor), tensor_name
    assert not torch.equal(found[0]["fc.weight"], found[1]["fc.weight"])


def test_a_fan_s_prediction_takes_norms_and_embeddings_along(tmp_path: Path) -> None:
    paths = write_states(tmp_path)
    counts = nowcast([Checkpoint(path) for path in paths], seeded_scale_free(), [tmp_path / "x2"], 0.5)
    assert counts == {"conv": 108, "fc": 35 + 24, "bias": 9 + 8, "carried": 5}
    theta, written = load_file(paths[0] / "model.safetensors"), load_file(tmp_path / "x2" / "model.safetensors")
    same = {name for name, tensor in theta.items() if torch.equal(written[name], tensor)}
    assert same == {"norm.running_mean", "norm.num_batches_tracked", "none.weight"}


def test_names_order_metadata_and_other_files_are_theta_0_s(tmp_path: Path, known: Known) -> None:
    paths = write_states(tmp_path)
    nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2"], 0.5)
    assert (tmp_path / "x2" / "config.json").read_text() == '{"state": 0}'
    assert (tmp_path / "x2" / "sub" / "labels.txt").read_text() == "0"
    assert len([path for path in (tmp_path / "x2").rglob("*") if path.is_file()]) == 3
    before, after = (Checkpoint(path).headers["model.safetensors"] for path in (paths[0], tmp_path / "x2"))
    assert list(before.tensors) == list(after.tensors)
    assert [info.dtype for info in before.tensors.values()] == [info.dtype for info in after.tensors.values()]
    with safe_open(tmp_path / "x2" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"epoch": "0", "format": "pt"}


def test_stored_names_keep_their_prefix_and_states_may_have_another(tmp_path: Path, known: Known) -> None:
    wrapped, plain = write_states(tmp_path / "wrapped", prefix="module."), write_states(tmp_path / "plain")
    nowcast([Checkpoint(wrapped[0]), *(Checkpoint(path) for path in plain[1:])], known, [tmp_path / "w"], 0.5)
    nowcast([Checkpoint(path) for path in plain], known, [tmp_path / "p"], 0.5)
    found, expected = load_file(tmp_path / "w" / "model.safetensors"), load_file(tmp_path / "p" / "model.safetensors")
    assert found.keys() == {f"module.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(found[f"module.{name}"], tensor)


def test_sharded_in_sharded_out(tmp_path: Path, known: Known) -> None:
    paths = write_states(tmp_path)
    nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "single"], 0.5)
    whole = load_file(paths[0] / "model.safetensors")
    names = list(whole)
    shards = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    (paths[0] / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file({name: whole[name] for name in part}, paths[0] / file)
    index = json.dumps({"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}})
    (paths[0] / INDEX).write_text(index)
    nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "sharded"], 0.5)
    assert (tmp_path / "sharded" / INDEX).read_text() == index
    assert {path.name for path in (tmp_path / "sharded").iterdir()} == {
        "a.safetensors", "b.safetensors", INDEX, "config.json", "sub"
    }  # fmt: skip
    written = Checkpoint(tmp_path / "sharded")
    for name, tensor in load_file(tmp_path / "single" / "model.safetensors").items():
        assert torch.equal(written.read(name), tensor)


def test_progress_ends_at_the_bytes_of_theta_0(tmp_path: Path, known: Known) -> None:
    states = [Checkpoint(path) for path in write_states(tmp_path)]
    seen: list[tuple[int, int]] = []
    nowcast(states, known, [tmp_path / "x2"], 0.5, on_bytes=lambda done, total: seen.append((done, total)))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(0).values())
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_two_runs_give_the_same_bytes(tmp_path: Path, known: Known) -> None:
    states = [Checkpoint(path) for path in write_states(tmp_path)]
    digests = []
    for run in ("first", "second"):
        outputs = [tmp_path / run / "x2", tmp_path / run / "x4"]
        nowcast(states, known, outputs, 0.5)
        digests.append([hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest() for output in outputs])
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[0][1]


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_another_number_of_states(tmp_path: Path, known: Known, count: int) -> None:
    paths = write_states(tmp_path)
    with pytest.raises(KnownError, match=rf"{count} states given \(states_count\)"):
        nowcast([Checkpoint(path) for path in [*paths, *paths][:count]], known, [tmp_path / "x2"], 0.5)


def test_states_of_other_models(tmp_path: Path, known: Known) -> None:
    paths = write_states(tmp_path)
    save_file({"fc.weight": torch.zeros(2, 2), "new": torch.zeros(1)}, paths[3] / "model.safetensors")
    with pytest.raises(KnownError, match=r"\(states_mismatch\)") as caught:
        nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2"], 0.5)
    for part in ("state 3 (state-3) lacks fc.bias", "state 3 (state-3) adds new", "fc.weight is [2, 2]"):
        assert part in caught.value.message
    assert not (tmp_path / "x2").exists()


@pytest.mark.parametrize("state", [0, 2, 4])
@pytest.mark.parametrize("name", ["z.weight", "fc.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite(tmp_path: Path, known: Known, state: int, name: str, value: float) -> None:
    paths = write_states(tmp_path)
    spoilt = tensors(state)
    spoilt[name].view(-1)[1] = value
    save_file(spoilt, paths[state] / "model.safetensors")
    with pytest.raises(KnownError, match=rf"'{name}'.*\(nonfinite_weights\)"):
        nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    for output in ("x2", "x4"):
        assert sorted(path.name for path in (tmp_path / output).iterdir()) == ["config.json", "sub"]


def test_weights_that_are_carried_over_must_be_finite_too(tmp_path: Path, known: Known) -> None:
    paths = write_states(tmp_path)
    spoilt = tensors(0)
    spoilt["norm.weight"][0] = float("nan")
    save_file(spoilt, paths[0] / "model.safetensors")
    with pytest.raises(KnownError, match=r"'norm\.weight'.*\(nonfinite_weights\)"):
        nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2"], 0.5)


def test_predictions_must_be_finite_in_the_dtype_they_are_written_in(tmp_path: Path, known: Known) -> None:
    """One step back is at most 1 away, so it takes sixteen to leave float16."""
    with torch.no_grad():
        for network in known.networks.values():
            network.get_submodule("head").get_parameter("weight").zero_()
            network.get_submodule("head").get_parameter("bias").fill_(10)
    paths = write_states(tmp_path, torch.float16)
    large = tensors(0, torch.float16)
    large["fc.bias"].fill_(65504)
    save_file(large, paths[0] / "model.safetensors")
    states = [Checkpoint(path) for path in paths]
    nowcast(states, known, [tmp_path / f"{step}" for step in range(15)], 0.5)
    with pytest.raises(KnownError, match=r"'fc\.bias'.*float16 \(nonfinite_weights\)"):
        nowcast(states, known, [tmp_path / f"far-{step}" for step in range(17)], 0.5)


def test_files_and_manifest(tmp_path: Path, hypermodel_file: Path) -> None:
    paths = write_states(tmp_path)
    facts = nowcast_files(paths, tmp_path / "out", recurrences=2, rate=0.25, hypermodel=hypermodel_file)
    assert facts["outputs"] == ["x4", "x16"]
    assert facts["hypermodel"]["name"] == "seeded"
    assert [list(files) for files in facts["inputs_sha256"]] == [["model.safetensors"]] * 5
    expected = hashlib.sha256((paths[2] / "model.safetensors").read_bytes()).hexdigest()
    assert facts["inputs_sha256"][2]["model.safetensors"] == expected
    assert verify_manifest(tmp_path / "out") == 6
    assert read_json(tmp_path / "out" / "manifest.json")["weights_predicted"] == facts["weights_predicted"]
    with pytest.raises(KnownError, match=r"\(output_exists\)"):
        nowcast_files(paths, tmp_path / "out", hypermodel=hypermodel_file)


def test_a_failure_leaves_no_output_folder(tmp_path: Path, hypermodel_file: Path) -> None:
    paths = write_states(tmp_path)
    spoilt = tensors(1)
    spoilt["fc.bias"][0] = float("nan")  # late: much is written by then
    save_file(spoilt, paths[1] / "model.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KnownError, match=r"\(nonfinite_weights\)"):
        nowcast_files(paths, tmp_path / "out", hypermodel=hypermodel_file)
    assert sorted(tmp_path.iterdir()) == before


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key != "KNOWN_HYPERMODEL"}
    line = [sys.executable, "-c", "from known_core.cli import main; main()", "nowcast", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, env=environment, timeout=120, cwd=Path(__file__).parents[2], check=False
    )


def test_the_command(tmp_path: Path, hypermodel_file: Path) -> None:
    paths = write_states(tmp_path)
    done = command(*paths, "--out", tmp_path / "out", "--hypermodel", hypermodel_file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"] == ["x2", "x4", "x8"]
    assert verify_manifest(tmp_path / "out") == 9
    theta = load_file(paths[0] / "model.safetensors")
    for name in ("x2", "x4", "x8"):
        found = load_file(tmp_path / "out" / name / "model.safetensors")
        assert found.keys() == theta.keys()
        assert torch.equal(found["norm.running_mean"], theta["norm.running_mean"])
        assert not torch.equal(found["fc.weight"], theta["fc.weight"])


@pytest.mark.slow
def test_the_command_says_what_is_wrong(tmp_path: Path, hypermodel_file: Path) -> None:
    """The other ways to be wrong are in test_cli.py, without a process each."""
    paths = write_states(tmp_path)
    arguments = (*paths[:4], tmp_path / "nowhere", "--out", tmp_path / "out", "--hypermodel", hypermodel_file)
    done = command(*arguments)
    assert done.returncode == 1
    assert str(tmp_path / "nowhere") in done.stderr
    assert "weights_missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_five_resnet18(tmp_path: Path, known: Known) -> None:
    """11 M parameters: 62 trainable tensors and their statistics, in seconds."""
    config: Any = transformers.AutoConfig.for_model(
        "resnet", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=10
    )
    states = []
    for seed in range(5):
        torch.manual_seed(seed)
        transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / f"{seed}")
        states.append(Checkpoint(tmp_path / f"{seed}"))
    counts = nowcast(states, known, [tmp_path / name for name in ("x2", "x4", "x8")], 0.5)
    assert counts["conv"] > 11_000_000
    assert (counts["fc"], counts["bias"]) == (5120, 10)
    for name in ("x2", "x4", "x8"):
        Checkpoint(tmp_path / name).check_finite()
        model: Any = transformers.ResNetForImageClassification.from_pretrained(tmp_path / name)
        assert model.config.depths == [2, 2, 2, 2]
