"""The API and two workers in network namespaces of their own: see :mod:`tests.storage.machines`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from known_core.client import Client
from known_core.files import write_json
from tests.conftest import CONFIG, Inputs
from tests.storage.machines import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_job_killed_on_one_machine_is_finished_by_another(
    tmp_path: Path, inputs: Inputs, client: Client, finished_job: str
) -> None:
    """kill -9 of the worker halfway; the bytes are those of an undisturbed job of one machine with a folder alone."""
    write_json(
        tmp_path / "inputs.json",
        {"config": CONFIG, **{name: str(getattr(inputs, name)) for name in ("model", "dataset", "downstream")}},
    )
    namespaces = ["unshare", "--mount", "--mount-proc", "--net", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, sys.executable, "-m", "tests.storage.machines", tmp_path, tmp_path / "inputs.json"],
        cwd=ROOT, timeout=500, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["status"] == "succeeded", f"{seen['error']}\n{seen['log']}\n{seen['worker']}"
    assert (seen["attempts"], seen["stages before"] >= 5, seen["stages run again"]) == (2, True, [])
    assert "attempt 1\n" in seen["log"]  # of the machine that is gone
    assert seen["content"] == client.manifest(finished_job)["content_sha256"]
    assert seen["while the bucket is away"] == "validating"
    assert seen["published from"] == seen["verified"]
    assert seen["downloaded"] == seen["verified"] > 0
    assert (seen["answer"], seen["head"], seen["key in the address"], seen["report"]) == (307, True, False, 200)
    assert seen["report in words"]
    assert seen["checkpoints"] > seen["stages before"]
    assert seen["secrets of the trainer"] == []
    assert seen["reaches the api"] == "False"
    assert seen["only its own jobs"] == []
    assert seen["left in the bucket"] == []
    assert seen["uploads"] == 3
