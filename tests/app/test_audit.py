"""The audit log: who, what, which object, when, from where, with what outcome; and never a secret."""

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx

from app.audit.repository import AuditRepository
from app.jobs.repository import connect
from known_core.client import Client
from known_core.stack import Stack
from tests.app.conftest import RATE
from tests.conftest import Inputs

Send = Callable[..., httpx.Response]


def lines(stack: Stack) -> list[dict[str, Any]]:
    """Of the API's log, those that are entries."""
    return [json.loads(line) for line in (stack.logs / "api.log").read_text().splitlines() if line.startswith("{")]


def entries(send: Send, admin: str) -> list[dict[str, Any]]:
    """A tenant's, oldest first."""
    return list(reversed(send("/v1/audit?limit=1000", admin).json()["data"]))


def test_an_entry_names_the_job_that_was_made(
    locked: Stack, key_for: Callable[..., str], send: Send, inputs: Inputs
) -> None:
    token, admin = key_for("makers"), key_for("makers", ("read", "admin"))
    with Client(locked.url, token) as client:
        job_id = client.enhance(inputs.request(client, f"{locked.url}#makers"), token="hf_canary")["id"]
        client.cancel(job_id)
    made = [entry for entry in entries(send, admin) if entry["object"] == job_id]
    assert [(entry["path"], entry["status"]) for entry in made] == [
        ("/v1/enhance", 202),
        (f"/v1/jobs/{job_id}/cancel", 202),
    ]
    assert {(entry["key"], entry["client"]) for entry in made} == {(token.split("_")[1], "127.0.0.1")}
    logged = [line for line in lines(locked) if line["object"] == job_id]
    assert [(line["tenant"], line["request_id"]) for line in logged] == [
        ("makers", entry["request_id"]) for entry in made
    ]
    everything = (locked.logs / "api.log").read_text() + json.dumps(entries(send, admin))
    assert token[19:62] not in everything
    assert "hf_canary" not in everything


def test_a_refusal_is_in_the_log_of_whose_key_it_is(
    key_for: Callable[..., str], send: Send, command: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    admin, token, expired = key_for("owners", ("read", "admin")), key_for("owners"), key_for("owners", lasts_ms=1)
    assert command("keys", "revoke", token.split("_")[1]).returncode == 0
    for key, method in ((token, "GET"), (expired, "GET"), (admin, "POST")):
        assert send("/v1/uploads" if method == "POST" else "/v1/jobs", key, method, "192.0.2.9").status_code in (
            401,
            403,
        )
    found = [(entry["action"], entry["key"], entry["code"], entry["client"]) for entry in entries(send, admin)]
    ids = [key.split("_")[1] for key in (token, expired, admin)]
    assert found == [
        ("key revoked", ids[0], None, None),
        (None, ids[0], "key_revoked", "192.0.2.9"),
        (None, ids[1], "key_expired", "192.0.2.9"),
        (None, ids[2], "scope_missing", "192.0.2.9"),
    ]


def test_a_flood_does_not_push_out_what_happened(locked: Stack, key_for: Callable[..., str], send: Send) -> None:
    token = key_for("flooder")
    for _ in range(RATE + 5):
        send(f"/v1/jobs/job_{'2' * 24}/cancel", token, "POST")
    deadline = time.monotonic() + 10  # an answer may be here before its line is
    while len(logged := [line["code"] for line in lines(locked) if line["tenant"] == "flooder"]) < RATE + 5:
        assert time.monotonic() < deadline, logged
        time.sleep(0.05)
    assert logged == ["job_not_found"] * RATE + ["rate_limited"] * 5
    repository = AuditRepository(connect(locked.store_url), 1000)
    assert [entry["code"] for _, entry in repository.newest("flooder", 1000)] == ["job_not_found"] * RATE


def test_so_many_are_kept(locked: Stack) -> None:
    """Streams are trimmed by whole nodes of a hundred entries."""
    repository = AuditRepository(connect(locked.store_url), 300)
    for index in range(1000):
        repository.add("trimmed", {"action": str(index)})
    kept = repository.newest("trimmed", 2000)
    assert 300 <= len(kept) < 500
    assert kept[0][1] == {"action": "999"}


def test_the_operator_reads_it_since_a_time(
    locked: Stack, command: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    redis: Any = connect(locked.store_url)
    stream = "known:tenant:timed:audit"
    seconds, _ = redis.time()
    redis.xadd(stream, {"data": json.dumps({"action": "old"})}, id=f"{(seconds - 7200) * 1000}-0")
    redis.xadd(stream, {"data": json.dumps({"action": "new"})})
    found = {
        since: [json.loads(line)["action"] for line in command(*words).stdout.splitlines()]
        for since, words in {
            "all": ("audit", "--tenant", "timed"),
            "1h": ("audit", "--tenant", "timed", "--since", "1h"),
            "3h": ("audit", "--tenant", "timed", "--since", "3h"),
        }.items()
    }
    assert found == {"all": ["new", "old"], "1h": ["new"], "3h": ["new", "old"]}
