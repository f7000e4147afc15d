"""Processes forked from one that has imported what they need. ``python -m worker.forkserver SOCKET_FD MODULE...``.

An import of PyTorch and transformers takes seconds, longer than a small job trains. As in multiprocessing's forkserver,
one process imports them and does nothing else: it reads no file of a stranger's, and leaves the GPU alone, which a
forked process could not use after it. Each fork gets folder, environment and descriptors of its own, and from there on
is what ``python -m MODULE`` would be.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from setproctitle import setproctitle

from known_core.processes import die_with_parent, outlive_parent

_REQUEST_BYTES = 1 << 20
_MAX_DESCRIPTORS = 16
_ABOVE = 200  # where descriptors wait for their numbers
_FORK_SAFE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # to ask whether there is a GPU then does not start CUDA


class ForkServer:
    """The server, and who asks it. Linux has what it takes (pidfd_open(2)).

    Args:
        imports: modules that it imports.
        environment: of the server; what it imports reads it once for all its processes.
    """

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.forkserver", str(theirs.fileno()), *imports],
                stdin=subprocess.DEVNULL, env={**environment, **_FORK_SAFE}, cwd="/", pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        self._channel = ours
        self._lock = Lock()  # an answer belongs to the request before it
        self._is_ready = False

    @property
    def was_killed(self) -> bool:
        """Whether it has ended since it was ready."""
        return self._is_ready and self._process.poll() is not None

    def ready(self, patience_s: float) -> bool:
        """Whether it has imported everything; waits so long for it. Raises: ConnectionError where it could not."""
        with self._lock:
            if not self._is_ready and select.select([self._channel], [], [], patience_s)[0]:
                if not self._channel.recv(_REQUEST_BYTES):
                    raise _ended()
                self._is_ready = True
            return self._is_ready

    def fork(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: int, kept: Sequence[int]
    ) -> "Forked":
        """Start a process, once the server is ready.

        Args:
            command: the module and its arguments.
            folder: that it works in.
            output: descriptor of what it prints.
            kept: descriptors that it keeps, under the same numbers.

        Raises:
            ConnectionError: where the server has ended.
        """
        request = {"command": [*command], "folder": str(folder), "environment": {**environment}, "kept": [*kept]}
        return Forked(self, self._ask(request, [output, *kept]))

    def reap(self, pid: int) -> int:
        """The exit status of a process that has ended, as subprocess gives it; until this its pid is nobody else's."""
        try:
            return self._ask({"reap": pid}, [])
        except ConnectionError:  # with the server its processes were killed
            return -signal.SIGKILL

    def close(self) -> None:
        """End the server; what it has forked ends with it."""
        self._channel.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            data = self._channel.recv(_REQUEST_BYTES)
        if not data:
            raise _ended()
        return int(data)


def _ended() -> ConnectionError:
    return ConnectionResetError("the fork server has ended")


class Forked:
    """A process as subprocess.Popen shows it."""

    stdin = None

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._ended = os.pidfd_open(pid)  # readable once it has
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises: subprocess.TimeoutExpired."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def _look(self, timeout_s: float | None) -> int | None:
        if self._status is None and select.select([self._ended], [], [], timeout_s)[0]:
            self._status = self._server.reap(self.pid)
            os.close(self._ended)
        return self._status


def main(channel: socket.socket, imports: Sequence[str]) -> int:
    """Serve until nobody asks any more. Returns: the exit status."""
    die_with_parent()
    for name in imports:
        import_module(name)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        print("an import has started CUDA: KNOWN_TRAINER_PRELOAD=false", file=sys.stderr)
        return 1
    outlive_parent()  # the parent is a thread, and others may ask; the end of the channel says when all are gone
    gc.collect()
    gc.freeze()  # what is imported stays shared with every fork, and no collection looks at it again
    channel.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, _MAX_DESCRIPTORS)
        if not data:
            return 0
        request = json.loads(data)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        elif (answer := os.fork()) == 0:
            channel.close()
            _become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(answer).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    os.setsid()
    command, kept = request["command"], request["kept"]
    waiting = [os.dup2(descriptor, _ABOVE + at) for at, descriptor in enumerate(descriptors)]
    for descriptor in descriptors:
        os.close(descriptor)
    output, *others = waiting
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    for descriptor, number in zip(others, kept, strict=True):
        os.dup2(descriptor, number)
    for descriptor in waiting:
        os.close(descriptor)
    setproctitle(" ".join([sys.executable, "-P", "-m", *command]))  # before the environment, beside which it lies
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # an import has asked for it
    os.chdir(request["folder"])
    sys.argv = [*command]
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take all that was imported apart would copy it, which takes half a second


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        sys.exit(main(asked, sys.argv[2:]))
