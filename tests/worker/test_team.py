"""Jobs of the service that two processes train together, isolated as ever; one of them dies."""

import os
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.chaos.scene import trainers, until
from tests.conftest import SETTINGS, ended
from tests.known_core.tasks.tiny import save_gpt2, texts_alone
from worker.isolation import Isolation
from worker.trainer import _possible

QUICK: dict[str, Any] = {
    "forgetting": {"learning_rate": 1e-3, "batch_size": 8},
    "nowcast": {"controls": []},
    "evaluation": {"seeds": 3, "probe_examples": 10, "probe_epochs": 1, "probe_learning_rates": [1e-3]},
}


def ranks(job_id: str) -> list[psutil.Process]:
    """The processes of the team that is at work."""
    children = [child for trainer in trainers(job_id) for child in trainer.children()]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_gpt2(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return tmp_path / "model.zip"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a trainer a network of its own")
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_job_whose_process_dies_goes_on(sharding: str, model: Path, tmp_path: Path) -> None:
    environment = {**SETTINGS, "KNOWN_TEAM_SIZE": "2", "KNOWN_TEAM_SHARDING": sharding}
    with Stack(tmp_path / "data", port=0, environment=environment) as stack, Client(stack.url) as client:
        texts = texts_alone(tmp_path / "texts.jsonl")
        inputs = {"model": {"upload_id": client.upload(model)}, "dataset": {"upload_id": client.upload(texts)}}
        job_id = str(client.enhance({**inputs, **QUICK, "task": "causal-lm"})["id"])
        for event in client.events(job_id):
            if event["type"] == "phase" and event["phase"] == "forgetting" and event["detail"].startswith("2"):
                break
        until(lambda: len(ranks(job_id)) == 2, "no two processes train", 120)
        victims = ranks(job_id)
        victims[1].kill()
        until(lambda: not any(process.is_running() for process in victims), "a process of the team is left")
        job = ended(client, job_id)
        assert job["status"] == "succeeded", client.logs(job_id)
        assert job["attempts"] == 2
        manifest = client.manifest(job_id)
        assert manifest["trained_by"] == {"processes": 2, "sharding": sharding}
        assert "loopback" in manifest["isolation"]["mechanisms"]
        assert manifest["isolation"]["lacking"] == []
        assert trainers(job_id) == []


def test_where_there_is_no_network_one_process_trains() -> None:
    alone = Isolation(["landlock", "seccomp"], [], {"loopback": "it needs a network and mounts of its own"})
    assert _possible(0, alone) == 1
    assert _possible(1, alone) == 1
    assert _possible(0, None) == 0
    assert _possible(2, Isolation(["netns", "mounts", "loopback"], [], {})) == 2
    with pytest.raises(KnownError, match="CAP_NET_ADMIN") as error:
        _possible(2, alone)
    assert error.value.code == "isolation_incomplete"
