"""`known demo` as a newcomer runs it: a process, its output, and what is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from known_core.manifest import verify_manifest


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "known_core", "demo", "--data-dir", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_the_demo(tmp_path: Path) -> None:
    process = start(tmp_path)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    for words in (
        "every sha256 as in manifest.json",
        "loaded: ",
        "on its own task, as in the report",
        "Before and after",
        "* delivered.",
        "forgetting 5 of 5",
    ):
        assert words in output
    assert output.splitlines()[-1] == "everything is stopped"
    (result,) = (tmp_path / "demo" / "results").iterdir()
    assert verify_manifest(result) == 15
    used = str(tmp_path)
    assert [p for p in psutil.process_iter(["cmdline"]) if used in " ".join(p.info["cmdline"] or [])] == []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith("job_"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, lines
    assert output.splitlines()[-1] == "interrupted; everything is stopped"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
