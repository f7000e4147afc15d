"""Buckets on S3 servers that run as processes of their own: moto's, with faults, and the one of docker-compose.yml."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from app.storage.storage import Storage
from known_core.processes import die_with_parent
from known_core.stack import _free_port, _wait_for_port
from tests.deploy.containers import compose
from tests.storage.server import KEY_ID, SECRET

CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "known-test"


@dataclass(frozen=True)
class S3:
    """A running server. Args: client: boto3's own, to look at what is there."""

    port: int
    client: Any

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def refusing(self, every: int) -> Iterator[None]:
        """A block in which every Nth request is answered with 503."""
        httpx.post(f"{self.endpoint}/faults", params={"every": every}).raise_for_status()
        try:
            yield
        finally:
            httpx.post(f"{self.endpoint}/faults", params={"every": 0}).raise_for_status()

    @property
    def refused(self) -> int:
        return int(httpx.get(f"{self.endpoint}/faults").text)


@pytest.fixture(scope="session")
def credentials() -> Iterator[None]:
    os.environ.update(CREDENTIALS)
    yield
    for name in CREDENTIALS:
        os.environ.pop(name, None)


@contextmanager
def serving(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[S3]:
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=Path(__file__).parents[2], preexec_fn=die_with_parent,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        _wait_for_port(port, process, log)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=BUCKET)
        yield S3(port, client)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def s3(credentials: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    port = _free_port()
    command = [sys.executable, "-m", "tests.storage.server", "127.0.0.1", str(port)]
    with serving(command, port, tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def rclone(credentials: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """What docker-compose.yml runs."""
    port, folder = _free_port(), tmp_path_factory.mktemp("rclone")
    service = compose(dict.fromkeys(("REDIS_PASSWORD", "KNOWN_SECRET_KEY"), "x") | CREDENTIALS)["services"]["s3"]
    places = {"/buckets": str(folder), ":9000": f"127.0.0.1:{port}"}
    command = [places.get(word, word) for word in (*service["entrypoint"], *service["command"])]
    command[0] = str(Path(sys.executable).parent / command[0])
    with serving(command, port, folder, HOME=str(folder), **service["environment"]) as running:
        yield running


@pytest.fixture(params=["moto", "rclone"])
def storage(s3: S3, rclone: S3, request: pytest.FixtureRequest) -> Storage:
    """An empty prefix of a bucket, on either server."""
    server = s3 if request.param == "moto" else rclone
    return Storage(f"s3://{BUCKET}/{request.node.name}", server.endpoint)
