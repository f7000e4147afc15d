"""A store of their own for tests that play the workers themselves."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.jobs.repository import JobRepository, connect
from known_core.stack import _free_port, _valkey_binary, _wait_for_port


@pytest.fixture(scope="module")
def repository() -> Iterator[JobRepository]:
    with own_server() as one:
        yield one


@contextmanager
def own_server() -> Iterator[JobRepository]:
    """A server of its own."""
    folder, port = Path(tempfile.mkdtemp()), _free_port()
    command = [_valkey_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream)
    try:
        _wait_for_port(port, server, Path(log))
        yield JobRepository(connect(f"redis://127.0.0.1:{port}/0"))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)
