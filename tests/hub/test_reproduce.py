"""A job whose inputs lie on the Hub, run again from its manifest alone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from known_core import pipeline
from known_core.files import read_json
from known_core.spec import JobSpec
from tests.conftest import QUICK, Inputs
from tests.hub.server import File, LocalHub


def command(hub: LocalHub, home: Path, token: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`known reproduce`, as somebody."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KNOWN_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home),
                    "COLUMNS": "300"}  # fmt: skip
    line = [sys.executable, "-m", "known_core", "reproduce", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, env=environment, timeout=200, check=False, cwd=Path(__file__).parents[2]
    )


def publish(hub: LocalHub, kind: str, repo_id: str, folder: Path) -> dict[str, dict[str, str]]:
    """The folder as a private repository, and what a job says of its origin."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repo = hub.add(kind, repo_id, files, private=True)
    commit = repo.refs["main"]
    repo.commit("main", "changed since", {"README.md": File(b"another commit")})
    return {"hub": {"repo_id": repo_id, "revision": commit, "requested": "main"}}


@pytest.fixture
def manifest(hub: LocalHub, inputs: Inputs, tmp_path: Path) -> Path:
    """Of a job on alice's private model and data, and a file of her own to fine-tune on."""
    model, dataset = tmp_path / "given" / "model", tmp_path / "given" / "dataset"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(inputs.model.read_bytes())
    (model / "config.json").write_text(json.dumps(inputs.config))
    with zipfile.ZipFile(inputs.dataset) as archive:
        archive.extractall(dataset)
    (dataset / "README.md").write_text("# Digits", encoding="utf-8")
    spec = JobSpec(
        model=model,
        dataset=dataset,
        downstream=inputs.downstream,
        origins={
            "model": publish(hub, "models", "alice/m", model),
            "dataset": publish(hub, "datasets", "alice/d", dataset),
        },
        **QUICK,
    )
    return pipeline.run(spec, tmp_path / "job", lambda event: None) / "manifest.json"


@pytest.mark.slow
def test_what_came_from_the_hub_is_fetched_at_its_commit(
    hub: LocalHub, manifest: Path, inputs: Inputs, tmp_path: Path
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    done = command(hub, home, "hf_alice", manifest, "--work", work)
    assert done.returncode == 1
    assert "--downstream PATH" in done.stderr
    assert "input_missing" in done.stderr
    assert not work.exists()

    arguments = (manifest, "--work", work, "--downstream", inputs.downstream)
    done = command(hub, home, "hf_bob", *arguments)
    assert done.returncode == 1
    assert "hub_not_found" in done.stderr
    assert "Traceback" not in done.stderr

    done = command(hub, home, "hf_alice", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"] is True
    assert "fetching" in done.stderr
    sources = read_json(Path(found["artifacts"]) / "report.json")["sources"]
    assert sources["model"]["hub"]["repo_id"] == "alice/m"
    assert list((home / "known" / "hub").glob("*--alice--m"))

    before = len(hub.requests)
    done = command(hub, home, "hf_alice", *arguments)
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout
    assert len(hub.requests) == before  # what was fetched is there
