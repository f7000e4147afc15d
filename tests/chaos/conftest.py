"""Faults: stacks to make them in, and the table of what came of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.chaos.scene import Scene, content
from tests.conftest import SETTINGS, Inputs

COLUMNS = ("fault", "phases", "promises", "outcome", "attempts", "seconds", "same bytes")


@pytest.fixture(scope="session")
def undisturbed(stack: Stack, finished_job: str) -> str:
    """The content of the quick job that nobody disturbed."""
    with Client(stack.url) as client:
        return content(client, finished_job)


@pytest.fixture
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the table says of a test."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "name the fault: @pytest.mark.fault(name, promises)"
    name, promises = marker.args
    parameters = getattr(request.node, "callspec", None)
    found: dict[str, Any] = {
        "fault": name.format(**(parameters.params if parameters else {})),
        "promises": ", ".join(map(str, promises)),
    }
    request.node.user_properties.append(("chaos", found))
    return found


@pytest.fixture
def scene(tmp_path: Path, inputs: Inputs, undisturbed: str, facts: dict[str, Any]) -> Iterator[Callable[..., Scene]]:
    """Starts a stack of its own for a test; takes settings that differ."""
    with ExitStack() as stacks:

        def begin(**settings: str) -> Scene:
            stack = stacks.enter_context(Stack(tmp_path / "data", port=0, environment={**SETTINGS, **settings}))
            client = stacks.enter_context(Client(stack.url))
            return Scene(stack, tmp_path / "data", client, inputs, undisturbed, facts)

        yield begin


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            facts = dict(report.user_properties).get("chaos")
            if facts is None or report.when != "call":
                continue
            rows.append((
                facts["fault"], facts.get("phases", "-"), facts["promises"],
                facts.get("outcome", "as promised") if report.passed else "FAILED",
                facts.get("attempts", "-"), f"{report.duration:.0f}", facts.get("same", "-"),
            ))  # fmt: skip
    if rows:
        terminalreporter.section("faults")
        for row in (COLUMNS, ["---"] * len(COLUMNS), *rows):
            terminalreporter.write_line("| " + " | ".join(map(str, row)) + " |")
