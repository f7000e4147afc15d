"""Deaths while a job talks to the Hub: kill -9 of fetcher and publisher; nothing is lost or published twice."""

import time
from pathlib import Path

import psutil
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import QUICK, SETTINGS, ended
from tests.hub.conftest import TOKENS
from tests.hub.server import Fault, LocalHub
from tests.hub.test_enhance import data_files, model_files


def processes(module: str, job_id: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if module in (line := process.info["cmdline"] or []) and any(job_id in part for part in line)
    ]


def kill_when_asked(hub: LocalHub, request: str, module: str, job_id: str) -> None:
    """Kill a process of a job as soon as the Hub has seen a request of it."""
    deadline = time.monotonic() + 120
    while not any(request in line for line in hub.requests):
        assert time.monotonic() < deadline, f"{request} was never asked for"
        time.sleep(0.05)
    (process,) = processes(module, job_id)
    process.kill()


@pytest.mark.slow
def test_kill_9_while_fetching_and_while_publishing(tmp_path: Path) -> None:
    with LocalHub(TOKENS) as hub:
        hub.add("models", "alice/resnet", model_files(tmp_path / "model"), private=True)
        hub.add("datasets", "alice/digits", data_files(tmp_path / "data"), private=True)
        notes = (
            f"/alice/resnet/resolve/{hub.repos['models', 'alice/resnet'].refs['main']}/notes.txt"  # only carried over
        )
        hub.faults += [
            Fault("GET", notes, delay_s=20),
            Fault("POST", "/api/models/alice/know/commit", delay_s=5),
        ]
        environment = {**SETTINGS, "KNOWN_HUB_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        with Stack(tmp_path / "stack", port=0, environment=environment) as stack, Client(stack.url) as client:
            job_id = client.enhance({
                "model": {"hub": {"repo_id": "alice/resnet"}},
                "dataset": {"hub": {"repo_id": "alice/digits"}, "columns": {"label": "digit"}},
                "output": {"hub": {"repo_id": "alice/know"}},
                **QUICK,
            }, token="hf_alice")["id"]  # fmt: skip
            hub.requests.clear()
            kill_when_asked(hub, f"GET {notes}", "worker.fetcher", job_id)
            kill_when_asked(hub, "POST /api/models/alice/know/commit", "worker.publisher", job_id)
            job = ended(client, job_id)
            assert job["status"] == "succeeded", client.logs(job_id)
            assert job["attempts"] == 3
            for module in ("worker.fetcher", "worker.trainer", "worker.publisher"):
                assert processes(module, job_id) == []
        repo = hub.repos["models", "alice/know"]
        assert job["result"]["commit"] == repo.refs["main"]
        assert len(repo.commits) == 2  # the initial one, and this one
        blobs = [line for line in hub.requests if line.startswith("PUT /lfs/")]
        assert len(blobs) == len(set(blobs))
