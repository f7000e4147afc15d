"""The Python of docs/client.md and docs/library.md runs from top to bottom, block after block."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from known_core.stack import Stack

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name: str, folder: Path, **environment: str) -> str:
    """What the page's blocks print, run as one script in a folder of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=folder, env=os.environ | environment, capture_output=True,
        text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_client_s_page(stack: Stack, tmp_path: Path) -> None:
    said = run_page("client.md", tmp_path, KNOWN_SERVER=stack.url, XDG_CACHE_HOME=str(tmp_path))
    assert "succeeded" in said
    assert "job_not_found 404" in said


@pytest.mark.slow
def test_the_library_s_page(tmp_path: Path) -> None:
    said = run_page("library.md", tmp_path)
    assert "Nothing was measured" in said
    assert "Intervals are Student's t" in said
