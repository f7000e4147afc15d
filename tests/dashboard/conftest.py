"""A real Chromium, a service that asks for keys, and jobs that stand still while a page is looked at."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from app.jobs.record import JobStatus
from app.jobs.repository import JobRepository, connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs

expect.set_options(timeout=30_000)  # of a machine that does much else
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")  # for longer, its event loop would be in the way of tests that run their own
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
    environment |= {"KNOWN_WEBHOOK_ALLOW_HTTP": "true", "KNOWN_WEBHOOK_ALLOWED_HOSTS": "127.0.0.1"}
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


@pytest.fixture(scope="session")
def standing(guarded: Stack, key_of: Callable[..., str], inputs: Inputs) -> Iterator[dict[str, str]]:
    """Jobs in every state but succeeded, by state; they stay so, since this test is their worker. And their key."""
    key = key_of("lab")
    store = connect(guarded.store_url)
    repository = JobRepository(store)
    with Client(guarded.url, key) as client:
        request = inputs.request(client, f"{guarded.url}#lab", webhook={"url": "http://127.0.0.1:9999/hook?token=x"})
        jobs = {name: client.enhance(request)["id"] for name in ("running", "failed", "canceled", "paused", "queued")}
        client.cancel(jobs["canceled"])
        client.pause(jobs["paused"])
    fences = {name: repository.claim(jobs[name], "test", 600, 3) or 0 for name in ("running", "failed")}
    for event in running_events():
        fields = {name: event[name] for name in ("phase",) if name in event}
        if event["type"] == "progress":
            fields["progress"] = json.dumps({name: event[name] for name in ("phase", "step", "total", "eta_seconds")})
        repository.add_event(jobs["running"], fences["running"], event, fields)
    repository.mark_running(jobs["running"], fences["running"])
    wrong = {
        "code": "out_of_memory",
        "message": "memory ran out, after all that could be tried with less",
        "hint": "Lower forgetting.max_length, use smaller images, or run on a larger GPU.",
        "retryable": False,
    }
    repository.finish(jobs["failed"], fences["failed"], JobStatus.FAILED, wrong)
    yield {**jobs, "key": key}
    store.close()


def running_events() -> Iterator[dict[str, Any]]:
    """What a job says until it is in the third of its stages."""
    yield {"type": "phase", "phase": "downloading", "detail": ""}
    yield {"type": "phase", "phase": "evaluating_before", "detail": ""}
    yield {"type": "metric", "name": "accuracy", "value": 0.981, "phase": "evaluating_before", "candidate": "unchanged"}
    for stage, total in enumerate((120, 60, 30)):
        yield {"type": "phase", "phase": "forgetting", "detail": f"{stage + 1} of 4"}
        for step in range(3, total + 1 if stage < 2 else 20, 3):
            loss = 0.2 + 0.4 / (1 + step / 12) + 0.12 * stage + 0.006 * ((step * 7) % 5 - 2)
            yield {"type": "progress", "phase": "forgetting", "step": step, "total": total,
                   "eta_seconds": round((total - step) * 0.4, 1), "loss": round(loss, 4)}  # fmt: skip
        if stage < 2:
            yield {"type": "metric", "name": "accuracy", "value": 0.962 - 0.07 * stage, "phase": "forgetting",
                   "state": stage + 1}  # fmt: skip
