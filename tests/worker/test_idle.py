"""A worker that ends itself: one that a platform starts for a job that waits, and never stops."""

from pathlib import Path

import psutil
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended


@pytest.mark.slow
def test_a_worker_does_what_waits_and_ends_itself(tmp_path: Path, inputs: Inputs) -> None:
    """Its time without work is shorter than a job: only what is done with counts as none."""
    environment = {**SETTINGS, "KNOWN_EXIT_WHEN_IDLE_SECONDS": "1.5"}
    with Stack(tmp_path / "data", port=0, environment=environment, workers=0) as stack, Client(stack.url) as client:
        jobs = [str(client.enhance(inputs.request(client, stack.url))["id"]) for _ in range(2)]
        stack.add_worker("short")
        worker = psutil.Process(stack.pids()["short"])
        for job_id in jobs:
            job = ended(client, job_id)
            assert (job["status"], job["attempts"]) == ("succeeded", 1)
        assert worker.wait(30) == 0
        assert "this worker ends" in (stack.logs / "short.log").read_text()
