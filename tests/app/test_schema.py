"""The API as its own OpenAPI says it: schemathesis with all its checks on every operation (promise 31)."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import BaseSchema, Case
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import PositiveDataAcceptanceConfig, SchemathesisConfig

from known_core.stack import Stack

HEADERS: dict[str, str] = {}  # of every request: {"Authorization": "Bearer ..."} where the API has keys
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))  # of each operation; `make fuzz` asks for more
# a request may be well-formed and yet impossible: an unknown upload, a Hub that is offline, states that are not enough
IMPOSSIBLE = ["2xx", "304", "404", "409", "415", "422", "503"]
load_all_checks()


@pytest.fixture(scope="module")
def api_schema(stack: Stack) -> BaseSchema:
    config = SchemathesisConfig()
    config.projects.default.checks.positive_data_acceptance = PositiveDataAcceptanceConfig(expected_statuses=IMPOSSIBLE)
    return schemathesis.openapi.from_url(f"{stack.url}/openapi.json", config=config, headers=HEADERS)


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_every_operation_is_as_described(case: Case, finished_job: str) -> None:
    """Valid and invalid data; reads of a job are of one that is there, where the id could be one."""
    if case.method == "GET" and str(case.path_parameters.get("job_id", "")).startswith("job_"):
        case.path_parameters["job_id"] = finished_job
    case.call_and_validate(headers=HEADERS, checks=CHECKS.get_all(), timeout=60)
