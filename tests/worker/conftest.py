"""A store of their own for tests that play the workers themselves."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.repository import JobRepository, connect
from known_core.stack import _free_port, _valkey_binary, _wait_for_port


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRepository]:
    folder, port = tmp_path_factory.mktemp("valkey"), _free_port()
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
