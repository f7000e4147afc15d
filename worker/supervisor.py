"""One job, supervised: claim, start the trainer, relay its events, renew the lease, stop it when asked."""

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.jobs.record import JobStatus
from app.jobs.repository import JobRepository, LeaseLost
from known_core.files import write_json
from worker.messages import TERMINAL
from worker.settings import WorkerSettings
from worker.trainer import SPEC

_log = logging.getLogger(__name__)
_POLL_S = 0.5  # how soon a cancel or a shutdown is seen
_ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY", "KNOWN_HYPERMODEL", "KNOWN_ENGINE",
)  # fmt: skip


class Supervisor:
    """Runs jobs one at a time.

    Args:
        stopping: whether this worker is shutting down; the job then goes back to the queue.
        call_helpers: takes a job's id and how many shards its nowcast has, when it begins.
    """

    def __init__(
        self,
        repository: JobRepository,
        settings: WorkerSettings,
        stopping: Callable[[], bool] = lambda: False,
        call_helpers: Callable[[str, int], None] = lambda job_id, shards: None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._stopping = stopping
        self._call_helpers = call_helpers

    def run(self, job_id: str) -> bool:
        """Run a job, if it is there to be taken.

        Returns:
            Whether the job is back in the queue and wants a wake-up.
        """
        owner = f"{socket.gethostname()}:{os.getpid()}"
        fence = self._repository.claim(job_id, owner, self._settings.lease_seconds, self._settings.max_attempts)
        if fence is None:
            return False
        try:
            attempt = _Attempt(job_id, fence, self._repository, self._settings, self._stopping, self._call_helpers)
            return attempt.run()
        except LeaseLost as error:
            _log.warning("%s; the trainer was stopped and nothing more was written", error)
            return False

    def help(self, job_id: str, turn: int, helpers: int) -> None:
        """Write shards of the nowcast of a job that another worker runs, while it runs.

        It takes no lease and writes nothing to the record: shards are the same bytes whoever writes them, and appear
        whole.
        """
        if self._repository.status(job_id) is not JobStatus.RUNNING:
            return
        folder = self._settings.job_folder(job_id)
        if not folder.is_dir():
            _log.warning("%s is not here: only workers that share KNOWN_DATA_DIR can help one another", folder)
            return
        with (folder / "log.txt").open("ab", buffering=0) as log:
            command = ["worker.helper", str(folder), str(turn), str(helpers)]
            process = _start(command, folder, log.fileno())
            try:
                while process.poll() is None and not self._stopping():
                    if self._repository.status(job_id) is not JobStatus.RUNNING:
                        break
                    time.sleep(_POLL_S)
            finally:
                _stop(process, self._settings.kill_grace_seconds)


class _Attempt:
    """One claim of one job."""

    def __init__(
        self,
        job_id: str,
        fence: int,
        repository: JobRepository,
        settings: WorkerSettings,
        stopping: Callable[[], bool],
        call_helpers: Callable[[str, int], None],
    ) -> None:
        self._job_id, self._fence = job_id, fence
        self._call_helpers = call_helpers
        self._repository, self._settings, self._stopping = repository, settings, stopping
        self._folder = settings.job_folder(job_id)
        self._outcome: dict[str, Any] | None = None
        self._beat = time.monotonic()

    def run(self) -> bool:
        job = self._repository.get(self._job_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / SPEC, job.spec)
        with (self._folder / "log.txt").open("ab", buffering=0) as log:
            log.write(f"attempt {job.attempts}\n".encode())
            process, events = _start_trainer(self._folder, log.fileno())
            try:
                self._relay(events)
            finally:
                os.close(events)
                _stop(process, self._settings.kill_grace_seconds)
        return self._conclude()

    def _relay(self, events: int) -> None:
        """Until the trainer closes its end, or it is time to stop it."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                if selector.select(_POLL_S):
                    data = os.read(events, 1 << 16)
                    if not data:
                        return
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._handle(json.loads(line))
                if time.monotonic() - self._beat >= self._settings.heartbeat_seconds:
                    self._repository.heartbeat(self._job_id, self._fence, self._settings.lease_seconds)
                    self._beat = time.monotonic()
                if self._stopping() or self._repository.status(self._job_id) is JobStatus.CANCELING:
                    return

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind in TERMINAL:
            self._outcome = message
        elif kind == "fan_out":
            self._call_helpers(self._job_id, message["shards"])
        elif kind == "status":
            self._repository.mark_running(self._job_id, self._fence)
        elif kind == "progress":
            progress = {name: message[name] for name in ("phase", "step", "total", "eta_seconds")}
            self._repository.add_event(self._job_id, self._fence, message, {"progress": json.dumps(progress)})
        elif kind == "phase":
            self._repository.add_event(self._job_id, self._fence, message, {"phase": message["phase"]})
        else:
            self._repository.add_event(self._job_id, self._fence, message, {})

    def _conclude(self) -> bool:
        """Write down how the attempt ended. A job being canceled ends canceled whatever is written."""
        if self._outcome is None:
            status = self._repository.release(self._job_id, self._fence, attempt_counts=not self._stopping())
            return status is JobStatus.QUEUED
        kind = self._outcome.pop("type")
        status = JobStatus.SUCCEEDED if kind == "result" else JobStatus.FAILED
        self._repository.finish(self._job_id, self._fence, status, self._outcome)
        return False


def _start_trainer(folder: Path, log: int) -> "tuple[subprocess.Popen[bytes], int]":
    """The process, and the descriptor its messages come from."""
    read_end, write_end = os.pipe()
    try:
        return _start(["worker.trainer", str(folder), str(write_end)], folder, log, write_end), read_end
    finally:
        os.close(write_end)


def _start(command: list[str], folder: Path, log: int, *descriptors: int) -> "subprocess.Popen[bytes]":
    """A module of ours in a process of its own, with nothing of this one's environment but what it needs."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        env={
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning costs 2x to 8x where cores are shared (docs/experiments.md)
            **environment,
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",
        },
        pass_fds=descriptors,
        start_new_session=True,
    )


def _stop(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End the trainer and everything it started: TERM, then KILL."""
    for how, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
    process.wait()
