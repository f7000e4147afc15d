"""Every process of the service is restarted, one after the other, while clients start and follow jobs."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs
from tests.upgrade.balancer import Balancer

_API = "uvicorn --factory app.main:create_app --host 127.0.0.1 --no-access-log --timeout-graceful-shutdown 15 --port"


class SecondApi:
    """Another process of the API on the stack's store and folder."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._environment = {
            **os.environ,
            **SETTINGS,
            "KNOWN_REDIS_URL": stack.store_url,
            "KNOWN_DATA_DIR": str(folder),
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", *_API.split(), str(self.port)]
        self._process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)
        wait_until_ready(self.port)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing answers on port {port}")


@contextmanager
def second_api(stack: Stack, folder: Path) -> Iterator[SecondApi]:
    api = SecondApi(stack, folder)
    try:
        yield api
    finally:
        api.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rolling_restart_under_load_loses_nothing(tmp_path: Path, inputs: Inputs) -> None:
    """As Kubernetes does it: nothing new is sent to a process that is about to end; the next ends when it is back."""
    with (
        Stack(tmp_path, port=0, environment=SETTINGS) as stack,
        second_api(stack, tmp_path) as second,
        Balancer([stack.port, second.port]) as balancer,
    ):
        stack.add_worker("second worker")
        url = f"http://127.0.0.1:{balancer.port}"
        with Client(url) as client:
            request = inputs.request(client, url)
        over = threading.Event()
        accepted: list[str] = []

        def follow() -> list[tuple[str, int, list[str]]]:
            """Start jobs, one after the other, until the restarts are over; an error of the client is the test's."""
            seen = []
            with Client(url) as client:
                while not over.is_set():
                    job_id = str(client.enhance(request)["id"])
                    accepted.append(job_id)
                    ids = [event.id for event in client.events(job_id)]
                    job = client.job(job_id)
                    assert list(client.jobs())
                    seen.append((str(job["status"]), int(job["attempts"]), ids))
            return seen

        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(follow) for _ in range(3)]
            try:
                for _ in range(2):
                    with balancer.without(stack.port):
                        stack.stop_one("api")
                        stack.restart("api")
                        wait_until_ready(stack.port)
                    with balancer.without(second.port):
                        second.stop()
                        second.start()
                    for name in ("worker", "second worker"):
                        stack.stop_one(name)
                        stack.add_worker(name)
                        time.sleep(5)
            finally:
                over.set()
            seen = [job for client in clients for job in client.result(600)]
        assert len(seen) == len(set(accepted)) == len(accepted) >= 3
        for status, attempts, ids in seen:
            assert (status, attempts) == ("succeeded", 1)
            assert ids == sorted(set(ids), key=lambda entry: tuple(map(int, entry.split("-"))))
