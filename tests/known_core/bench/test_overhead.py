"""The script that a job is timed beside does a job's work."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from known_core.bench import plain_job
from known_core.bench.overhead import _make_inputs
from known_core.files import read_json, write_json


def test_the_script_trains_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make_inputs(tmp_path)
    settings = read_json(tmp_path / "settings.json")
    settings["forgetting"]["epochs_per_stage"] = 1
    settings["evaluation"] |= {"seeds": 1, "probe_epochs": 1, "probe_learning_rates": [1e-3]}
    write_json(tmp_path / "settings.json", settings)
    plain_job.main(tmp_path)
    *probes, seconds = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in probes] == ["state-0", "x2", "x4", "x8"]
    assert float(seconds) > 0
    given = load_file(tmp_path / "model.safetensors")
    for name in ("state-4", "x2", "x8"):
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == given.keys()
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
        assert not torch.equal(weights["hidden.weight"], given["hidden.weight"])
