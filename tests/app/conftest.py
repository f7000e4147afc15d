"""A service that asks for keys. It has no worker, so it starts within a second or two; its jobs wait."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.stack import Stack
from tests.conftest import SETTINGS

RATE = 40
SCOPES = ("read", "write")


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = SETTINGS | {"KNOWN_ACCESS": "keys", "KNOWN_RATE_LIMIT": f"{RATE}/minute"}
    environment["KNOWN_KEY_FAILURE_LIMIT"] = "25/minute"
    with Stack(tmp_path_factory.mktemp("locked"), port=0, environment=environment, workers=0) as running:
        yield running


@pytest.fixture(scope="session")
def key_for(locked: Stack) -> Callable[..., str]:
    """Makes a key of a tenant with scopes; returns its text."""
    repository = KeyRepository(connect(locked.store_url))

    def make(tenant: str, scopes: tuple[str, ...] = SCOPES, lasts_ms: int | None = None) -> str:
        key, token = new_key(tenant, "test", frozenset(map(Scope, scopes)), repository.now(), lasts_ms)
        repository.add(key)
        return token

    return make


@pytest.fixture(scope="session")
def send(locked: Stack) -> Callable[..., httpx.Response]:
    """A request with a key, as a proxy on this machine passes it on from an address."""

    def request(
        path: str, token: str | None = None, method: str = "GET", address: str = "192.0.2.1", **options: Any
    ) -> httpx.Response:
        headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {token}"} if token else {})
        return httpx.request(method, locked.url + path, headers=headers, timeout=60, **options)

    return request


@pytest.fixture(scope="session")
def command(locked: Stack) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A `known` command on the machine of the service, which finds the store by the data folder."""

    def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KNOWN_")}
        return subprocess.run(
            [sys.executable, "-m", "known_core", *words], capture_output=True, text=True, check=False,
            env=inherited | {"KNOWN_DATA_DIR": str(locked.logs.parent)} | environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    return run
