"""A real Chromium, a service that asks for keys, and jobs that stand still while a page is looked at."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.stack import Stack
from tests.conftest import SETTINGS

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}: apt-get install chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield started
        started.close()


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """It has no worker: what is queued stays so."""
    environment = SETTINGS | {"KNOWN_ACCESS": "keys", "KNOWN_KEY_FAILURE_LIMIT": "10/minute"}
    with Stack(tmp_path_factory.mktemp("dashboard"), port=0, environment=environment, workers=0) as running:
        yield running


@pytest.fixture(scope="session")
def keys(guarded: Stack) -> Iterator[KeyRepository]:
    store = connect(guarded.store_url)
    yield KeyRepository(store)
    store.close()


@pytest.fixture(scope="session")
def key_of(keys: KeyRepository) -> Callable[..., str]:
    """Makes a key of a tenant; returns its text."""

    def make(tenant: str, *scopes: str) -> str:
        key, token = new_key(tenant, "test", frozenset(map(Scope, scopes or ("read", "write"))), keys.now(), None)
        keys.add(key)
        return token

    return make
