"""The API as its own OpenAPI says it: schemathesis, all checks and all phases, on every operation (promise 31)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import ended

HEADERS: list[str] = []  # of every request, where the API has keys: ["--header", "Authorization: Bearer ..."]
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "5")  # of each operation and phase; `make fuzz` asks for more
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(1800)
def test_every_operation_is_as_described(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    """Valid and invalid data, one after the other and in sequences; nothing is a 500, nothing is undocumented."""
    job_id = start_job()  # a job of its own: what is found in answers is deleted, too
    assert ended(client, job_id)["status"] == "succeeded"
    run = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)],
            *["run", f"{stack.url}/openapi.json", "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"],
            *["--max-examples", EXAMPLES, "--continue-on-failure", "--generation-database", "none", "--no-color"],
            *["--seed", os.environ.get("FUZZ_SEED", "0"), *HEADERS],
        ],
        env={**os.environ, "JOB_ID": job_id},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    operations = sum(len(methods) for methods in httpx.get(f"{stack.url}/openapi.json").json()["paths"].values())
    assert f"Tested: {operations}" in run.stdout


def test_a_405_names_every_method_of_its_path(stack: Stack) -> None:
    answer = httpx.put(f"{stack.url}/v1/jobs/job_{'0' * 24}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")
