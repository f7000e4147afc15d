"""`known bench nowcast`: rows that fit together, on a real architecture."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from known_core.bench.nowcast import generate, run_nowcast
from known_core.checkpoint import Checkpoint
from known_core.cli import app
from known_core.errors import KnownError


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.mark.slow
def test_a_row_says_what_a_run_took(work: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            "bench",
            "nowcast",
            "--model",
            "resnet18",
            "--engine",
            "cpu",
            "--recurrences",
            "2",
            "--work",
            str(work),
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["model"], row["engine"], row["device"]) == ("resnet18", "cpu", "cpu")
    assert row["parameters"] == 11_166_912 + 512_000 + 1_000  # kernels, the last layer, its bias
    assert row["seconds"] == pytest.approx(row["seconds_per_parameter"] * row["parameters"] * 2)
    assert row["flops_per_second"] == pytest.approx(14_608 / row["seconds_per_parameter"])
    assert row["fraction_of_matmul_ceiling"] == pytest.approx(row["flops_per_second"] / row["matmul_flops_per_second"])
    assert 0 < row["engine_seconds_per_parameter"] < 2 * row["seconds_per_parameter"]  # alone, but on a noisy machine
    assert row["ratio_to_eager"] is None  # eager was not asked for
    assert 0 < row["bytes_per_second"] < row["copy_bytes_per_second"]
    assert 10 << 20 < row["peak_rss_bytes"] < 1 << 30
    assert not (work / "resnet18-out").exists()


def test_states_are_generated_once(work: Path) -> None:
    paths = generate("resnet18", work)
    before = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in generate("resnet18", work)] == before
    theta, last = Checkpoint(paths[0]), Checkpoint(paths[4])
    assert sum(info.numel for info in theta.tensors.values()) == 11_699_132  # torchvision's, with its statistics
    moved = (theta.read("fc.weight") - last.read("fc.weight")).std()
    assert 0.001 < moved < 0.01


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"models": ["gpt9"]}, "option_invalid"),
        ({"engines": ["fast"]}, "engine_unavailable"),
        ({"engines": ["triton"]}, "engine_unavailable"),
        ({"hypermodel": "mine"}, "hypermodel_unknown"),
        ({"device": "cuda"}, "option_invalid"),
        ({"reference": Path("nowhere")}, "extra_missing"),
    ],
)
def test_wrong_options_are_said_before_anything_is_measured(change: dict[str, object], code: str) -> None:
    options: dict[str, object] = {
        "models": ["resnet18"], "engines": None, "device": "cpu", "hypermodel": "known-paper", "recurrences": 1,
        "reference": None,
        "work": None,
    }  # fmt: skip
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        run_nowcast(**{**options, **change})  # type: ignore[arg-type]
