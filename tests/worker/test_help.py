"""Workers that help one another with a nowcast, on one data folder."""

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from known_core.client import Client
from known_core.stack import Stack
from tests.chaos.scene import trainers
from tests.conftest import SETTINGS, Inputs, ended


@pytest.fixture
def sharded_model(tmp_path: Path) -> Path:
    """The zip of a small transformers ResNet in several files."""
    config: Any = transformers.AutoConfig.for_model(
        "resnet", depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8, layer_type="basic", num_channels=3,
        id2label={index: str(index) for index in range(5)}, label2id={str(index): index for index in range(5)},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "model", max_shard_size="8KB")
    processor: Any = transformers.ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=1.0)
    processor.save_pretrained(tmp_path / "model")
    files = sorted((tmp_path / "model").iterdir())
    assert sum(file.suffix == ".safetensors" for file in files) > 2
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return tmp_path / "model.zip"


@pytest.mark.slow
def test_an_idle_worker_helps_and_the_job_ends_as_it_would_alone(
    inputs: Inputs, sharded_model: Path, tmp_path: Path
) -> None:
    environment = {**SETTINGS, "KNOWN_NOWCAST_HELPERS": "3"}
    with Stack(tmp_path / "data", port=0, environment=environment) as stack, Client(stack.url) as client:
        stack.add_worker("second worker")
        request = inputs.request(client, stack.url)
        request["model"] = {"upload_id": client.upload(sharded_model)}
        job_id = str(client.enhance(request)["id"])
        for event in client.events(job_id):
            if event.get("phase") == "nowcasting":
                break
        processes = trainers(job_id)
        for process in processes:
            process.suspend()
        deadline = time.monotonic() + 60
        while "helper" not in client.logs(job_id) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in processes:
            process.resume()
        assert ended(client, job_id)["status"] == "succeeded", client.logs(job_id)
        assert "helper 1 of" in client.logs(job_id)
        assert not [event for event in client.events(job_id) if event["type"] == "fan_out"]  # not a user's business
