"""The API as its own OpenAPI says it: schemathesis, all checks and all phases, on every operation (promise 31)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "1")  # of each operation and phase; `make fuzz` asks for more
CONFIG = Path(__file__).with_name("schemathesis.toml")
ENVIRONMENT = SETTINGS | {
    "KNOWN_ACCESS": "keys",  # so that the checks of authorization have something to check
    "KNOWN_RATE_LIMIT": "",
    "KNOWN_KEY_FAILURE_LIMIT": "100000/minute",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own: jobs that are found in answers get deleted, too."""
    with Stack(tmp_path_factory.mktemp("schema"), port=0, environment=ENVIRONMENT) as running:
        yield running


@pytest.fixture(scope="module")
def key(guarded: Stack) -> str:
    """A key that may do everything."""
    repository = KeyRepository(connect(guarded.store_url))
    made, token = new_key("team", "schemathesis", frozenset(Scope), repository.now(), None)
    repository.add(made)
    return token


@pytest.mark.timeout(3600)
def test_every_operation_is_as_described(guarded: Stack, key: str, inputs: Inputs) -> None:
    """Valid and invalid data, one after the other and in sequences; nothing is a 500, nothing is undocumented."""
    with Client(guarded.url, key) as client:
        job_id = client.enhance(inputs.request(client, guarded.url))["id"]
        assert ended(client, job_id)["status"] == "succeeded"
    run = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)],
            *["run", f"{guarded.url}/openapi.json", "--checks", "all", "--header", f"Authorization: Bearer {key}"],
            *["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES, "--continue-on-failure"],
            *["--generation-database", "none", "--no-color", "--seed", os.environ.get("FUZZ_SEED", "0")],
        ],
        env={**os.environ, "JOB_ID": job_id},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    operations = sum(len(methods) for methods in httpx.get(f"{guarded.url}/openapi.json").json()["paths"].values())
    assert f"Tested: {operations}" in run.stdout


def test_a_405_names_every_method_of_its_path(guarded: Stack, key: str) -> None:
    answer = httpx.put(f"{guarded.url}/v1/jobs/job_{'0' * 24}", headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")
