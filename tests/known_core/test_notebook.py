"""The client in a real notebook kernel, without ipywidgets: progress is drawn in the cell, reports show themselves."""

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from known_core.stack import Stack


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_waiting_and_reading_in_a_notebook(stack: Stack, finished_job: str) -> None:
    cells = [
        f"from known_core.client import Client\nclient = Client('{stack.url}')\njob = client.job('{finished_job}')",
        "job = job.wait()",
        "job.report()",
        "job.report().table()",
        "import sys\nprint('ipywidgets' in sys.modules)",
    ]
    code: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    document = {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {},
        "cells": [code | {"source": cell} for cell in cells],
    }
    notebook: Any = nbformat.from_dict(document)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs: list[list[Any]] = [cell.outputs for cell in notebook.cells]
    assert outputs[0] == []
    [bars] = outputs[1]  # one picture, replaced in place, and not a warning beside it
    assert "forgetting" in bars.data["text/html"]
    assert "evaluating_after" in bars.data["text/html"]
    [report] = outputs[2]
    assert "<table>" in report.data["text/html"]
    [table] = outputs[3]
    assert "Before and after" in table.data["text/html"]
    assert outputs[4][0].text == "False\n"
