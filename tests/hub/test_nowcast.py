"""A trajectory that lies on the Hub, as five revisions of one repository, predicted without a copy of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from known_core.files import read_json
from known_core.nowcast_files import nowcast_files
from tests.hub.server import File, LocalHub


def weights(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return save({
        "layer.weight": torch.randn(40, 30, generator=generator), "layer.bias": torch.randn(40, generator=generator)
    })  # fmt: skip


@pytest.fixture
def revisions(hub: LocalHub) -> list[str]:
    """URLs of five revisions of a private repository of alice's."""
    repo = hub.add("models", "alice/m", {"config.json": b"{}"}, private=True)
    files = [{"model.safetensors": File(weights(seed), lfs=True)} for seed in range(5)]
    return [f"hf://alice/m@{repo.commit('main', f'state {seed}', files[seed]).oid}" for seed in range(5)]


def command(hub: LocalHub, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`known nowcast`, as alice."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KNOWN_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_alice", "HF_HOME": str(home), "COLUMNS": "300"}
    line = [sys.executable, "-m", "known_core", "nowcast", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=Path(__file__).parents[2]
    )


def test_five_revisions_are_a_trajectory(hub: LocalHub, revisions: list[str], tmp_path: Path) -> None:
    done = command(hub, tmp_path / "home", *revisions, "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    local = [tmp_path / f"{seed}.safetensors" for seed in range(5)]
    for seed, path in enumerate(local):
        path.write_bytes(weights(seed))
    expected = nowcast_files(local, tmp_path / "local")
    assert json.loads(done.stdout)["inputs_sha256"] == expected["inputs_sha256"]
    for name in expected["outputs"]:
        files = [tmp_path / folder / name / "model.safetensors" for folder in ("out", "local")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert load_file(files[0]).keys() == {"layer.weight", "layer.bias"}
        assert read_json(tmp_path / "out" / name / "config.json") == {}
    assert not list((tmp_path / "home").rglob("*.safetensors"))  # read in place, never copied


def test_a_repository_that_is_not_ours_is_said(hub: LocalHub, revisions: list[str], tmp_path: Path) -> None:
    hub.add("models", "bob/secret", {"model.safetensors": weights(0)}, private=True)
    done = command(hub, tmp_path / "home", "hf://bob/secret", *revisions[1:], "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "hf://bob/secret" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
