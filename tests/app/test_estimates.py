"""Estimates over real HTTP: of a dry run, and beside what a job really took."""

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests import devices
from tests.chaos.test_disk import fill, small_disk
from tests.conftest import SETTINGS, Inputs, ended


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose worker finds its machine calibrated."""
    folder = tmp_path_factory.mktemp("calibrated")
    devices.keep(folder)
    with Stack(folder, port=0, environment=SETTINGS | {"KNOWN_CALIBRATE": "true"}) as running:
        while not worker(running)["calibrated_at"]:
            time.sleep(0.1)
        yield running


def worker(stack: Stack) -> dict[str, Any]:
    """What the one worker says of itself; nothing while its last word is too old."""
    said = httpx.get(f"{stack.url}/v1/capabilities", timeout=60).json()["workers"]
    return said[0] if said else {"calibrated_at": None}


def test_a_dry_run_says_what_a_job_would_take_and_a_job_what_it_took(calibrated: Stack, inputs: Inputs) -> None:
    with Client(calibrated.url) as client:
        request = inputs.request(client, calibrated.url)
        found = client.estimate(request).raw
        estimate = found["estimate"]
        assert found["no_estimate"] is None
        assert estimate["seconds"]["low"] < estimate["seconds"]["expected"] < estimate["seconds"]["high"]
        assert estimate["basis"].startswith("AMD EPYC, 2 cores, calibrated 2026-11-26T16:46:28Z")
        assert set(estimate["by_phase"]) > {"starting", "forgetting", "packaging"}

        job = ended(client, client.enhance(request)["id"])
        assert job["status"] == "succeeded"
        assert job["cost"]["estimated"] == estimate
        actual = job["cost"]["actual"]
        assert actual["seconds"] > 1
        assert (actual["gpu_seconds"], actual["gpu_memory_bytes"]) == (0, None)
        assert actual["memory_bytes"] > 100 << 20
        folder = calibrated.logs.parent / "jobs" / job["id"] / "run"
        assert actual["disk_bytes"] >= sum(file.stat().st_size for file in folder.glob("artifacts/x2/*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_job_begins_only_where_the_disk_has_what_it_is_expected_to_take(calibrated: Stack, inputs: Inputs) -> None:
    with Client(calibrated.url) as client, small_disk(calibrated.logs.parent / "jobs", 1):
        fill(calibrated.logs.parent / "jobs", leave=100_000)
        job = ended(client, client.enhance(inputs.request(client, calibrated.url))["id"])
        assert job["cost"]["estimated"]["disk_bytes"]["low"] > 200_000
        assert job["error"]["code"] == "disk_full"
        assert "more bytes" in job["error"]["message"]
        assert job["attempts"] == 1
        assert job["started_at"]
        assert not (calibrated.logs.parent / "jobs" / job["id"] / "run").exists()


def test_without_a_calibration_there_is_a_reason_and_no_guess(stack: Stack, client: Client, inputs: Inputs) -> None:
    found = client.estimate(inputs.request(client, stack.url)).raw
    assert (found["estimate"], found["no_estimate"]) == (None, "no_calibration")
    assert found["resolved"]["architecture"] == "small-cnn"


def test_a_job_without_an_estimate_still_says_what_it_took(client: Client, finished_job: str) -> None:
    cost = client.job(finished_job)["cost"]
    assert cost["estimated"] is None
    assert cost["actual"]["seconds"] > 0
    assert cost["actual"]["memory_bytes"] > 0
