"""The command line in this process: exit codes and messages. `known nowcast` as a process is in test_nowcast.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.known_core.conftest import Run


@pytest.fixture
def states(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(5):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"state-{seed}.safetensors")
        save_file({"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)}, paths[-1])
    return paths


def test_what_is_heavy_is_imported_by_commands_alone() -> None:
    """So that --help and completion are quick."""
    script = (
        "import sys, known_core.cli; print(*{'torch', 'transformers', 'numpy', 'httpx', 'fastapi'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


@pytest.mark.parametrize(
    "command", [[], ["serve"], ["demo"], ["enhance"], ["nowcast"], ["jobs"], ["jobs", "list"], ["metatrain", "fit"]]
)
def test_help(run: Run, command: list[str]) -> None:
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert "Usage" in out


def test_nowcast(run: Run, states: list[Path], tmp_path: Path, hypermodel_file: Path) -> None:
    status, out, said = run("nowcast", *states, "--out", tmp_path / "out", "--hypermodel", hypermodel_file)
    assert status == 0, said
    assert "x2, x4, x8; weights: conv 0, fc 12, bias 3, carried 0" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x2", "x4", "x8", "manifest.json"}


def test_nowcast_takes_the_hyper_model_of_the_environment(
    run: Run, states: list[Path], tmp_path: Path, hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    status, out, _ = run("nowcast", *states, "--out", tmp_path / "out", "--recurrences", 1, "--json")
    assert status == 0
    facts = json.loads(out)
    assert facts["hypermodel"]["name"] == "seeded"
    assert facts["outputs"] == ["x2"]


def test_nowcast_s_wrong_inputs(run: Run, states: list[Path], tmp_path: Path, hypermodel_file: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "taken").mkdir()
    out, model = ("--out", tmp_path / "out"), ("--hypermodel", hypermodel_file)
    cases: list[tuple[tuple[object, ...], int, tuple[str, ...]]] = [
        ((*states[:4], *out, *model), 1, ("4 states given", "states_count")),
        ((*states, states[0], *out, *model), 1, ("6 states given", "states_count")),
        ((*states[:4], tmp_path / "gone", *out, *model), 1, (str(tmp_path / "gone"), "weights_missing")),
        ((*states[:4], tmp_path / "other.safetensors", *out, *model), 1, ("adds x", "states_mismatch")),
        ((*states[:4], tmp_path / "text.safetensors", *out, *model), 1, ("header_too_large",)),
        ((*states, "--out", tmp_path / "taken", *model), 1, (str(tmp_path / "taken"), "output_exists")),
        ((*states, *out, "--hypermodel", tmp_path / "none"), 1, (str(tmp_path / "none"), "hypermodel_invalid")),
        ((*states, *out, "--hypermodel", tmp_path / "other.safetensors"), 1, ("hypermodel_invalid",)),
        ((*states, *out, *model, "--rate", "1.5"), 2, ("--rate", "0.95")),
        ((*states, *out, *model, "--recurrences", "9"), 2, ("--recurrences", "4")),
        ((*states, *model), 2, ("--out",)),
    ]
    for arguments, expected, parts in cases:
        status, printed, said = run("nowcast", *arguments)
        assert status == expected, said
        assert all(part in said for part in parts), said
        assert printed == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "code"), [("not json", "file_invalid"), ("[]", "file_invalid")])
def test_settings_that_are_no_object(run: Run, tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "s.json").write_text(text)
    status, _, said = run("enhance", "--model", "m", "--dataset", "d", "--settings", tmp_path / "s.json")
    assert status == 1
    assert code in said
    assert str(tmp_path / "s.json") in said


def test_out_needs_wait(run: Run, tmp_path: Path) -> None:
    status, _, said = run("enhance", "--model", "m", "--dataset", "d", "--out", tmp_path / "o")
    assert status == 1
    assert "--wait" in said


@pytest.mark.parametrize("budget", ["", "10", "m", "tenm", "5d"])
def test_budgets_without_number_or_unit(run: Run, tmp_path: Path, budget: str) -> None:
    status, _, said = run("metatrain", "collect", "--out", tmp_path / "t", "--data", "digits", "--budget", budget)
    assert status == 1
    assert repr(budget) in said
    assert not (tmp_path / "t").exists()


def test_unknown_sample_data(run: Run, tmp_path: Path) -> None:
    status, _, said = run("metatrain", "collect", "--out", tmp_path / "t", "--data", "cats", "--budget", "1s")
    assert status == 1
    assert "'cats'" in said


def test_too_few_trajectories_are_a_message(run: Run, tmp_path: Path) -> None:
    status, _, said = run("metatrain", "fit", "--trajectories", tmp_path, "--out", tmp_path / "o")
    assert status == 1
    assert f"{tmp_path} has 0 trajectories" in said
