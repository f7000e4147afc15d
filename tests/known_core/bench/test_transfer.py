"""The benchmark in miniature: real digits, real trainings, seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from known_core.bench.candidates import Bench, Run
from known_core.bench.data import load_data
from known_core.bench.protocols import PROTOCOLS, SELECTION, Protocol
from known_core.bench.summary import render, summarise
from known_core.bench.transfer import measure_protocol
from known_core.errors import KnownError
from known_core.files import read_json
from tests.known_core.conftest import Run as RunCommand

pytestmark = pytest.mark.slow

MINIATURE = Protocol(
    "miniature", "digits", (0, 1, 2), (5, 6, 7), "cnn-batch", 60, size=8, width=2, epochs=1, batch_size=32,
    epochs_per_stage=1, shots=12, finetuning_epochs=1, finetuning_learning_rates=(1e-3, 1e-2), probe_examples=30,
    test_examples=40, multiples=(2,), pretraining_seeds=(0, 1), finetuning_seeds=(0, 1), selection_draws=2,
)  # fmt: skip
METHODS = ("shrink 0.5", "task vector", "fan x4")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, hypermodel_file: Path, fan_file: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), {}, {"known": hypermodel_file, "fan": fan_file})


@pytest.fixture(scope="session")
def rows(bench: Bench) -> dict[str, dict[str, Any]]:
    return measure_protocol(bench, MINIATURE, methods=lambda name: name in METHODS)


def test_every_method_is_measured_on_every_seed(rows: dict[str, dict[str, Any]]) -> None:
    assert set(rows) == {"naive", "oracle x2", "oracle x2 steps, D_0 alone", *METHODS}
    for row in rows.values():
        for metric in ("finetune", "probe"):
            assert np.shape(row[metric]) == (2, 2)
            assert np.all((np.asarray(row[metric]) >= 0) & (np.asarray(row[metric]) <= 1))
        assert len(row["own"]) == len(row["retuned"]) == 2
        assert len(row["validation"]) == 2
        assert row["learning_rate"] in MINIATURE.finetuning_learning_rates
    assert rows["task vector"]["variant"] in ("0.25", "0.5", "1")
    assert rows["naive"]["variant"] == ""


def test_what_was_measured_is_kept(bench: Bench, rows: dict[str, dict[str, Any]]) -> None:
    """The second run trains nothing, and a protocol with another seed of fine-tuning only what is new."""
    before = {path: path.stat().st_mtime_ns for path in bench.folder.rglob("*.json")}
    assert measure_protocol(bench, MINIATURE, methods=lambda name: name in METHODS) == rows
    assert {path: path.stat().st_mtime_ns for path in bench.folder.rglob("*.json")} == before


def test_learning_rates_and_scales_come_from_draws_that_never_report(
    bench: Bench, rows: dict[str, dict[str, Any]]
) -> None:
    run = Run(bench, MINIATURE, SELECTION)
    tried = {
        (scale, rate): run.measure("finetune", "task vector", scale, learning_rate=rate, seed=SELECTION)
        for scale in ("0.25", "0.5", "1")
        for rate in MINIATURE.finetuning_learning_rates
    }
    chosen = rows["task vector"]["variant"], rows["task vector"]["learning_rate"]
    assert tried[chosen] == max(tried.values()) == rows["task vector"]["validation"][0]
    assert SELECTION not in (*MINIATURE.pretraining_seeds, *MINIATURE.finetuning_seeds)
    for protocol in PROTOCOLS.values():
        assert all(seed < SELECTION for seed in (*protocol.pretraining_seeds, *protocol.finetuning_seeds))


def test_d0_is_part_of_the_oracle_s_data_and_none_is_measured_on(bench: Bench) -> None:
    data = load_data(bench.folder, MINIATURE, None, 0)

    def images(examples: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in examples.inputs["pixel_values"]}

    run = Run(bench, MINIATURE, 0)
    d0, larger = images(run._d0()), images(run._d0(2))
    assert d0 < larger
    assert len(larger) > 1.8 * len(d0)
    assert not larger & images(data.source_test)
    assert not images(data.pool) & images(data.test)
    assert data.classes == data.downstream_classes == 3
    other = load_data(bench.folder, MINIATURE, None, 1)
    assert images(other.test) == images(data.test)  # so that gains pair
    assert images(other.source) != images(data.source)


def test_a_task_learned_again_is_measured_on_unseen_examples(bench: Bench) -> None:
    again = replace(MINIATURE, name="again", downstream=MINIATURE.source)
    data = load_data(bench.folder, again, None, 0)
    trained = {image.numpy().tobytes() for image in data.source.inputs["pixel_values"]}
    for part in (data.pool, data.test):
        assert not trained & {image.numpy().tobytes() for image in part.inputs["pixel_values"]}


def test_oracle_and_naive_begin_alike_and_trajectories_begin_at_naive(bench: Bench) -> None:
    run = Run(bench, MINIATURE, 0)
    theta, chain, fan = run.pretrained(1), run.chain(), run.fan()
    assert len(chain) == len(fan) == 5
    for states in (chain, fan):
        assert all(torch.equal(states[0][name], tensor) for name, tensor in theta.items())
        assert not torch.equal(states[1]["head.weight"], theta["head.weight"])
    assert set(run.longer()) == {"longer", "swa", "ema"}


def test_candidates_have_the_statistics_of_d0(bench: Bench) -> None:
    run = Run(bench, MINIATURE, 0)
    naive, halved = run.candidate("naive", "")[0], run.candidate("shrink 0.5", "")[0]
    given = run.pretrained(1)
    assert torch.equal(naive["head.weight"], given["head.weight"])
    assert not torch.equal(naive["features.0.1.running_mean"], given["features.0.1.running_mean"])
    torch.testing.assert_close(  # biases stay, so the mean of half a convolution is half of it beside its bias
        halved["features.0.1.running_mean"] - given["features.0.0.bias"],
        0.5 * (naive["features.0.1.running_mean"] - given["features.0.0.bias"]),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_the_summary_of_a_real_run(rows: dict[str, dict[str, Any]]) -> None:
    summary = summarise(MINIATURE, rows, ["known", "fan"])
    [naive] = [row for row in summary["rows"] if row["method"] == "naive"]
    assert naive["finetune"]["gain"] == {"mean": 0, "low": 0, "high": 0, "n": 4}
    assert "## miniature" in render({"command": "known bench transfer", "protocols": [summary]})


def test_the_command_writes_its_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench, run: RunCommand
) -> None:
    monkeypatch.setitem(PROTOCOLS, "miniature", MINIATURE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "work").symlink_to(bench.folder)
    known = [f"--hypermodel={name}={path}" for name, path in bench.hypermodels.items()]
    arguments = ["--out", tmp_path / "out", "--protocol", "miniature", "--workers", "1", "--methods", "^shrink 0.5$"]
    status, printed, said = run("bench", "transfer", *arguments, *known)
    assert status == 0, said
    assert "## miniature" in printed
    assert (tmp_path / "out" / "transfer.md").read_text().strip() == printed.strip()
    assert (tmp_path / "out" / "transfer.svg").read_text().startswith("<?xml")
    results = read_json(tmp_path / "out" / "transfer.json")
    assert set(results["hypermodels"]) == {"known", "fan"}
    assert results["protocols"][0]["accuracies"].keys() == {
        "naive", "oracle x2", "oracle x2 steps, D_0 alone", "shrink 0.5"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--protocol", "none"], ("'none'", "cifar10-resnet", "option_invalid")),
        (["--tier", "tpu"], ("'tpu'", "cpu", "option_invalid")),
        (["--data", "cifar10"], ("--data is 'cifar10'", "NAME=PATH", "option_invalid")),
        (["--protocol", "cifar10-vit"], ("cifar10-vit", "--data cifar10=FILE", "sample_missing")),
        (["--protocol", "digits", "--methods", "("], ("'('", "option_invalid")),
        (["--protocol", "digits", "--reference", "nowhere"], ("nowhere", "hypermodel_invalid")),
        (["--protocol", "digits", "--hypermodel", "none"], ("'none'", "hypermodel_unknown")),
    ],
)
def test_wrong_flags(arguments: list[str], parts: tuple[str, ...], tmp_path: Path, run: RunCommand) -> None:
    status, _, said = run("bench", "transfer", "--out", tmp_path / "out", *arguments)
    assert status == 1
    assert all(part in said for part in parts), said
    assert not (tmp_path / "out").exists()


def test_data_that_is_too_small(bench: Bench) -> None:
    large = replace(MINIATURE, examples=5000)
    with pytest.raises(KnownError, match=r"wants 10040 examples of its source classes; digits has .*dataset_unusable"):
        load_data(bench.folder, large, None, 0)
