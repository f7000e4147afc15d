"""Processes of jobs, forked and started anew: what each gets, how it ends, and what it is without its server."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.repository import JobRepository
from tests.worker.test_placement import queue_one
from worker import processes
from worker.forkserver import ForkServer
from worker.processes import Process, ready, start, stop
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """One that imports little, in the place of this process's."""
    before, processes._fork_server = processes._fork_server, ForkServer(["tempfile"], ENVIRONMENT)
    yield
    processes._close()
    processes._fork_server = before


class Started:
    """A process of a job, what it told, and what it printed."""

    def __init__(self, folder: Path, status: str, preload: bool) -> None:
        settings = WorkerSettings(data_dir=folder, isolation="off", trainer_preload=preload)
        self.job = settings.job_folder("job_1")
        self.job.mkdir(parents=True, exist_ok=True)
        read_end, write_end = os.pipe()
        with (self.job / "log.txt").open("ab") as log:
            assert ready(settings, 30)
            command = ["tests.worker.telling", str(self.job), str(write_end), status]
            self.process: Process = start(command, self.job, settings, log.fileno(), write_end)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            self.told: dict[str, Any] = json.loads(pipe.readline() or "null")
        self.descriptor = write_end

    @property
    def printed(self) -> str:
        return (self.job / "log.txt").read_text()


@pytest.mark.parametrize("preload", [True, False])
def test_it_gets_what_is_its_own_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: bool
) -> None:
    monkeypatch.setenv("KNOWN_SECRET_KEY", "canary")
    started = Started(tmp_path, "3", preload)
    assert started.process.wait(10) == 3
    run = started.job / "run"
    assert started.told == {
        "folder": str(run), "home": str(run), "temporary": str(run / "tmp"), "secret": None, "leads_its_session": True,
        "descriptors": [0, 1, 2, started.descriptor],
    }  # fmt: skip
    assert started.printed == "printed\n"


@pytest.mark.parametrize("preload", [True, False])
def test_what_it_exits_with_is_printed(tmp_path: Path, preload: bool) -> None:
    started = Started(tmp_path, "no such thing", preload)
    assert started.process.wait(10) == 1
    assert sorted(started.printed.splitlines()) == ["no such thing", "printed"]


def test_the_title_of_a_forked_process_is_its_command(tmp_path: Path) -> None:
    started = Started(tmp_path, "never", True)
    command = psutil.Process(started.process.pid).cmdline()
    assert command == [
        sys.executable, "-P", "-m", "tests.worker.telling", str(started.job), str(started.descriptor), "never"
    ]  # fmt: skip
    assert started.process.poll() is None
    stop(started.process, 10)
    assert started.process.poll() == -signal.SIGTERM


def test_a_killed_server_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(tmp_path, "never", True)
    assert processes._fork_server is not None
    killed = processes._fork_server
    killed._process.kill()
    killed._process.wait()
    stop(started.process, 10)
    assert started.process.poll() == -signal.SIGKILL  # how it ended is not known
    monkeypatch.setattr(processes, "_IMPORTS", ("tempfile",))
    assert Started(tmp_path, "0", True).process.wait(10) == 0
    assert processes._fork_server is not killed


def test_without_a_server_that_can_import_nothing_starts() -> None:
    server = ForkServer(["known_core.no_such_module"], ENVIRONMENT)
    with pytest.raises(ConnectionError):
        server.ready(30)
    server.close()


def test_a_helper_that_cannot_be_started_is_said(
    repository: JobRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "_IMPORTS", ("known_core.no_such_module",))
    processes._close()
    settings = WorkerSettings(data_dir=tmp_path)
    job_id = queue_one(repository)
    fence = repository.claim(job_id, "owner", 60, 3)
    assert fence is not None
    repository.mark_running(job_id, fence)
    settings.job_folder(job_id).mkdir(parents=True)
    Supervisor(repository, settings).help(job_id, 1, 1)
    assert f"no help with {job_id}: the fork server has ended" in caplog.text
