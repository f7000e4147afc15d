"""What the tests of the service share: a real stack (Valkey, API, worker) and small real inputs."""

import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KNOWN_CALIBRATE", "false")  # half a minute of both cores for every new data folder
os.environ.pop("KNOWN_HYPERMODEL", None)
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # the stack runs this checkout, not another that is installed

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from known_core.client import Client, Job
from known_core.files import write_json
from known_core.sample_data import load_sample, write_imagefolder
from known_core.stack import Stack

SETTINGS = {  # short leases, so that a death is noticed within seconds
    "KNOWN_LEASE_SECONDS": "4",
    "KNOWN_HEARTBEAT_SECONDS": "0.5",
    "KNOWN_REAP_SECONDS": "0.5",
    "KNOWN_KILL_GRACE_SECONDS": "1",
    "KNOWN_MAX_ATTEMPTS": "30",
    "KNOWN_MAX_UPLOAD_BYTES": str(20 << 20),
    "KNOWN_MIN_FREE_BYTES": "0",
}
CONFIG = {"architecture": "small-cnn", "num_classes": 5, "in_chans": 1, "img_size": 8, "width": 4,
          "label_names": ["0", "1", "2", "3", "4"]}  # fmt: skip
QUICK: dict[str, Any] = {  # settings of the quickest job that still does everything
    "forgetting": {"epochs_per_stage": 1, "learning_rate": 1e-3, "batch_size": 32},
    "nowcast": {"controls": []},
    "evaluation": {"seeds": 3, "probe_examples": 20, "probe_epochs": 1, "probe_learning_rates": [1e-3]},
}


@dataclass(frozen=True)
class Inputs:
    """Files of a small job, and what a server called them after they were uploaded."""

    model: Path
    config: dict[str, Any]
    dataset: Path
    downstream: Path
    uploads: dict[tuple[str, Path], str] = field(default_factory=dict)

    def upload(self, client: Client, server: str, path: Path) -> str:
        key = (server, path)
        if key not in self.uploads:
            self.uploads[key] = client.upload(path)
        return self.uploads[key]

    def request(self, client: Client, server: str, **changes: Any) -> dict[str, Any]:
        """The quick job, with whole sections replaced by ``changes``."""
        return {
            "model": {"upload_id": self.upload(client, server, self.model), "config": self.config},
            "dataset": {"upload_id": self.upload(client, server, self.dataset)},
            "forgetting": QUICK["forgetting"],
            "nowcast": QUICK["nowcast"],
            "evaluation": {
                **QUICK["evaluation"], "downstream": {"upload_id": self.upload(client, server, self.downstream)}
            },
            **changes,
        }  # fmt: skip


def pytest_collection_finish() -> None:
    """accelerate collects garbage after each training: 0.7 s over all that is imported by now, unless it is frozen."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def make_inputs(folder: Path) -> Inputs:
    """A small CNN trained on the digits 0-4, its data, and the digits 5-9 to fine-tune on."""
    import torch
    from safetensors.torch import save_file

    from known_core.examples import image_examples
    from known_core.models.registered import build_registered
    from known_core.training import fine_tune

    digits = load_sample("digits")
    order = np.random.default_rng(0).permutation(900)
    source, downstream = digits.of_classes([0, 1, 2, 3, 4]), digits.of_classes([5, 6, 7, 8, 9])
    write_imagefolder(folder / "data.zip", source.take(order[:300]), source.take(order[300:400]))
    write_imagefolder(folder / "downstream.zip", downstream.take(order[order < 890][:200]))
    torch.manual_seed(0)
    model = build_registered(CONFIG)
    fine_tune(
        model, image_examples(source.take(order[:300]), 8), epochs=4, learning_rate=3e-3, batch_size=32, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    return Inputs(folder / "model.safetensors", CONFIG, folder / "data.zip", folder / "downstream.zip")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack as `known serve` starts it, with short leases."""
    with Stack(tmp_path_factory.mktemp("stack"), port=0, environment=SETTINGS) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as connected:
        yield connected


@pytest.fixture
def start_job(inputs: Inputs, client: Client, stack: Stack) -> Callable[..., str]:
    """Start the quick job, with sections replaced; returns its id."""

    def start(**changes: Any) -> str:
        return str(client.enhance(inputs.request(client, stack.url, **changes))["id"])

    return start


def ended(client: Client, job_id: str) -> Job:
    """The job, once it has ended."""
    return client.wait(job_id, progress=False, check=False)


@pytest.fixture(scope="session")
def finished_job(inputs: Inputs, stack: Stack) -> str:
    """The id of a job that succeeded, undisturbed."""
    with Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        job = ended(client, job_id)
        assert job["status"] == "succeeded", client.logs(job_id)
        return job_id
