"""The embedded stack as processes: durable, alone in its folder, and gone when it should be."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.jobs.repository import connect
from known_core.errors import KnownError
from known_core.stack import Stack, _free_port

NAMES = ("valkey-server", "uvicorn", "celery")


def serve(folder: Path) -> "tuple[subprocess.Popen[str], list[psutil.Process]]":
    """`known serve`, ready, and everything it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "known_core", "serve", "--port", str(_free_port()), "--data-dir", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C stops everything" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    lines = " ".join(" ".join(child.cmdline()) for child in children)
    assert all(name in lines for name in NAMES), lines
    return process, children


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running(tmp_path: Path, how: signal.Signals) -> None:
    process, children = serve(tmp_path)
    os.kill(process.pid, how)
    output = process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    # rich may repeat a line that a signal interrupted
    assert output.endswith("\nstopped\n") == (how is signal.SIGINT)


def test_the_store_is_durable_and_asks_for_a_password(stack: Stack) -> None:
    store = connect(stack.store_url)
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    assert {name: store.config_get(name)[name] for name in wanted} == wanted
    host = stack.store_url.partition("@")[2]
    with socket.create_connection((host.partition(":")[0], int(host.partition(":")[2].partition("/")[0]))) as plain:
        plain.sendall(b"PING\r\n")
        assert plain.recv(100).startswith(b"-NOAUTH")
    for pid in stack.pids().values():
        assert store.connection_pool.connection_kwargs["password"] not in " ".join(psutil.Process(pid).cmdline())


def test_one_stack_a_folder(stack: Stack) -> None:
    with pytest.raises(KnownError, match=r"\(stack_running\)"), Stack(stack.logs.parent, port=0):
        pass


def test_a_taken_port_is_said_and_nothing_is_started(stack: Stack, tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(KnownError, match=rf"port {stack.port} is taken"), Stack(tmp_path, port=stack.port):
        pass
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_a_process_that_ends_is_noticed(tmp_path: Path) -> None:
    with Stack(tmp_path, port=0) as stack:
        stack.check()
        os.kill(stack.pids()["api"], signal.SIGKILL)
        time.sleep(1)
        with pytest.raises(KnownError, match=r"api ended with status -9.*\(stack_failed\)"):
            stack.check()
