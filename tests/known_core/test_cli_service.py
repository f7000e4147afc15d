"""The command line: a command for every route, completion, following and leaving a job, and a quick --help."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from app.main import create_app
from app.settings import AppSettings
from known_core.cli import app as command_line
from known_core.client import Client
from known_core.client.records import Estimate
from known_core.stack import Stack
from known_core.terminal import binary_size, duration, show_estimate
from tests.conftest import Inputs, ended
from tests.known_core.conftest import Run
from tests.known_core.test_cli_jobs import arguments

COMMANDS = {
    "POST /v1/uploads": "uploads add",
    "GET /v1/uploads/{upload_id}": "uploads show",
    "HEAD /v1/uploads/{upload_id}": "uploads show",
    "PATCH /v1/uploads/{upload_id}": "uploads add",
    "DELETE /v1/uploads/{upload_id}": "uploads delete",
    "POST /v1/enhance": "enhance",
    "POST /enhance": "enhance",
    "GET /v1/jobs": "jobs list",
    "GET /v1/jobs/{job_id}": "jobs show",
    "POST /v1/jobs/{job_id}/cancel": "jobs cancel",
    "POST /v1/jobs/{job_id}/pause": "jobs pause",
    "POST /v1/jobs/{job_id}/resume": "jobs resume",
    "POST /v1/jobs/{job_id}/republish": "jobs republish",
    "GET /v1/jobs/{job_id}/checkpoints": "jobs checkpoints",
    "DELETE /v1/jobs/{job_id}": "jobs delete",
    "GET /v1/jobs/{job_id}/events": "jobs events",
    "GET /v1/jobs/{job_id}/logs": "jobs logs",
    "GET /v1/jobs/{job_id}/report": "report",
    "GET /v1/jobs/{job_id}/manifest": "jobs manifest",
    "GET /v1/jobs/{job_id}/artifacts": "jobs files",
    "GET /v1/jobs/{job_id}/artifacts/{path}": "jobs download",
    "GET /v1/audit": "audit",
    "GET /v1/capabilities": "capabilities",
    "GET /v1/webhooks/deliveries": "webhooks deliveries",
    "GET /v1/webhooks/deliveries/{delivery_id}": "webhooks show",
    "POST /v1/webhooks/deliveries/{delivery_id}/redeliver": "webhooks redeliver",
    "GET /v1/webhooks/secret": "webhooks secret",
    "POST /v1/webhooks/secret/rotate": "webhooks secret",
}
NOT_FOR_PEOPLE = {
    "OPTIONS /v1/uploads": "what of tus is spoken: for tus clients",
    "HEAD /v1/jobs/{job_id}/artifacts/{path}": "size and ETag of a file: `jobs files` has both",
    "GET /v1/jobs/{job_id}/figures": "addresses of pictures, for pages: `report --html` has all of them",
    "GET /v1/jobs/{job_id}/figures/{name}.svg": "a picture for a page: `report --html` has all of them",
    "GET /healthz": "a probe of the process, for whoever supervises it",
    "GET /readyz": "a probe of the store, for whoever balances load",
}


def test_every_route_has_a_command_or_a_reason(tmp_path: Path) -> None:
    paths = create_app(AppSettings(data_dir=tmp_path)).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(COMMANDS) | set(NOT_FOR_PEOPLE) == routes
    assert not set(COMMANDS) & set(NOT_FOR_PEOPLE)
    for command in set(COMMANDS.values()):
        found: Any = typer.main.get_command(command_line)
        for word in command.split():
            found = found.commands[word]
        flags = {flag for parameter in found.params for flag in parameter.opts}
        assert {"--server", "--api-key"} <= flags, command


def known(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command as a process, called as people call it."""
    code = "import sys; sys.argv[0] = 'known'; from known_core.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False,
        env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['known', '--help']\n"
        "from known_core.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "enhance" in done.stdout
    loaded = set(json.loads(done.stderr.replace("'", '"')))
    heavy = {
        "torch",
        "transformers",
        "matplotlib",
        "pyarrow",
        "numpy",
        "scipy",
        "httpx",
        "redis",
        "fastapi",
        "pydantic",
    }
    assert loaded & heavy == set()


def test_completion_of_the_shell_and_of_job_ids(stack: Stack, finished_job: str) -> None:
    shown = known("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _known_completion known" in shown.stdout

    def completed(line: str, server: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_KNOWN_COMPLETE": "complete_bash"}
        return known(KNOWN_SERVER=server, **words).stdout

    assert finished_job in completed("known jobs show job_", stack.url).split()
    assert completed(f"known jobs show {finished_job[:-1]}", stack.url).split() == [finished_job]
    assert "--follow" in completed("known jobs logs --fo", stack.url)
    assert completed("known jobs show job_", "http://127.0.0.1:9").strip() == ""  # no service, no error in the way


def test_leaving_and_coming_back(stack: Stack, client: Client, inputs: Inputs, tmp_path: Path, run: Run) -> None:
    """Ctrl-C in `enhance --wait` says how to come back, with 130; `jobs watch` follows to the end."""
    words = [*arguments(inputs, tmp_path), "--epochs-per-stage", 300, "--wait", "--server", stack.url]
    code = "import sys; sys.argv[0] = 'known'; from known_core.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        job_id = next(line.split()[0] for line in waiting.stderr if line.startswith("job_"))
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, said
    assert f"the job goes on. To come back: known jobs watch {job_id}" in said
    assert not client.job(job_id).ended
    client.cancel(job_id)
    status, out, said = run("jobs", "watch", job_id, "--server", stack.url)
    assert (status, out) == (1, f"{job_id} canceled\n")
    assert "job canceled" in said


@pytest.fixture
def _server(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_SERVER", stack.url)


@pytest.mark.usefixtures("_server")
def test_looking_at_a_finished_job(run: Run, client: Client, finished_job: str, tmp_path: Path) -> None:
    status, out, said = run("jobs", "watch", finished_job, "--out", tmp_path / "out")
    assert status == 0, said
    assert out.startswith(f"{finished_job} succeeded\nselected: ")
    assert "Before and after" in said
    selected = client.report(finished_job).selected
    assert (tmp_path / "out" / selected / "model.safetensors").is_file()

    status, out, _ = run("jobs", "events", finished_job, "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["data"]["status"] for event in events if event["type"] == "status"][-1] == "succeeded"
    status, out, _ = run("jobs", "events", finished_job, "--follow")
    assert (status, len(out.splitlines())) == (0, len(events))
    status, out, _ = run("jobs", "logs", finished_job, "--follow")
    assert (status, out) == (0, client.logs(finished_job))
    status, out, _ = run("jobs", "files", finished_job)
    listed = dict(line.split("  ")[::-1] for line in out.splitlines())
    status, out, _ = run("jobs", "manifest", finished_job)
    manifest = json.loads(out)
    assert {entry["path"]: entry["sha256"] for entry in manifest["files"]}.items() <= listed.items()
    status, out, _ = run("jobs", "checkpoints", finished_job)
    assert "fan-0" in out
    status, out, said = run("jobs", "download", finished_job, "--out", tmp_path / "all")
    assert (status, out) == (
        0,
        f"{len(manifest['files'])} files in {tmp_path / 'all'}, every sha256 as in manifest.json\n",
    )
    status, out, _ = run("jobs", "download", finished_job, "--out", tmp_path / "one", "--candidate", "selected")
    assert (tmp_path / "one" / selected).is_dir()
    assert len(list((tmp_path / "one").iterdir())) == 5  # it, the report in three forms, and the manifest


@pytest.mark.usefixtures("_server")
def test_uploads_and_what_the_service_can_do(run: Run, inputs: Inputs) -> None:
    status, out, said = run("uploads", "add", inputs.downstream)
    assert status == 0, said
    upload_id = out.strip()
    status, out, _ = run("uploads", "show", upload_id)
    assert (status, "complete" in out) == (0, True)
    assert run("uploads", "delete", upload_id)[:2] == (0, f"{upload_id} deleted\n")
    status, _, said = run("uploads", "show", upload_id)
    assert (status, "(upload_not_found)" in said) == (1, True)
    status, out, _ = run("capabilities")
    assert (status, "tasks: " in out, "worker " in out) == (0, True, True)
    status, out, _ = run("capabilities", "--json")
    assert json.loads(out)["object"] == "capabilities"


def test_the_audit_log_by_the_api(run: Run, stack: Stack, start_job: Callable[..., str], client: Client) -> None:
    job_id = start_job()
    client.cancel(job_id)
    status, out, said = run("audit", "--server", stack.url, "--limit", 5)
    assert status == 0, said
    assert {"POST /v1/enhance", f"POST /v1/jobs/{job_id}/cancel"} <= {
        f"{entry['method']} {entry['path']}" for entry in map(json.loads, out.splitlines())
    }
    status, _, said = run("audit", "--server", stack.url, "--tenant", "a")
    assert (status, "(usage)" in said) == (1, True)
    ended(client, job_id)


@pytest.mark.usefixtures("_server")
def test_a_dry_run_says_what_it_would_take(run: Run, inputs: Inputs, tmp_path: Path) -> None:
    status, out, said = run(*arguments(inputs, tmp_path), "--dry-run")
    assert status == 0, said
    assert "task: image-classification" in out


def test_an_estimate_with_its_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    figure = {"low": 100.0, "expected": 3725.0, "high": 9000.0}
    size = {"low": 2.0**20, "expected": 1.5 * 2**30, "high": 2.0**31}
    resources = {"seconds": figure, "memory_bytes": size, "gpu_memory_bytes": None, "disk_bytes": size,
                 "by_phase": {"forgetting": 61.0}, "basis": "a calibration of 3 s on the CPU"}  # fmt: skip
    show_estimate(Estimate.model_validate({"resolved": {}, "estimate": resources}), Console(width=100))
    rows = {line.split("  ")[1].strip(): line.split() for line in capsys.readouterr().out.splitlines() if "  " in line}
    assert rows["time"][1:] == ["1", "h", "2", "min", "1", "min", "40", "s", "2", "h", "30", "min"]
    assert rows["memory"][1:] == ["1.5", "GiB", "1", "MiB", "2", "GiB"]
    assert rows["GPU memory"][2:] == ["–"]
    assert [duration(value) for value in (0.25, 9.9, 59.4, 61, 7260)] == [
        "0.25 s",
        "9.9 s",
        "59 s",
        "1 min 1 s",
        "2 h 1 min",
    ]
    assert [binary_size(value) for value in (12, 2048, 5 << 40)] == ["12 B", "2 KiB", "5.12e+03 GiB"]
