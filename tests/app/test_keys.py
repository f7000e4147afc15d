"""API keys: their text, what a stranger learns, and the operator's commands."""

import importlib
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key, parse_token
from app.keys.repository import KeyRepository
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack

ROOT = Path(__file__).parents[2]
Send = Callable[..., httpx.Response]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def outcome(answer: httpx.Response) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["code"], answer.headers.get("WWW-Authenticate")


def forged(key_id: str) -> str:
    """A well-formed key of that id with another secret."""
    _, token = new_key("x", "", frozenset(Scope), 0, None)
    from app.keys.record import _checksum

    text = f"known_{key_id}_{token[19:62]}"
    return text + _checksum(text)


def test_a_mistyped_key_is_no_key() -> None:
    """CRC-32 sees every change of one sign, and every two neighbours swapped."""
    key, token = new_key("team-a", "ci", frozenset(Scope), 0, None)
    assert parse_token(token) == (key.id, token[19:62])
    for place in range(len(token)):
        for sign in "0aA_-":
            mistyped = token[:place] + sign + token[place + 1 :]
            assert parse_token(mistyped) is None or mistyped == token
        swapped = token[:place] + token[place : place + 2][::-1] + token[place + 2 :]
        assert parse_token(swapped) is None or swapped == token


@pytest.mark.parametrize("tenant", ["", "A", "a b", "-a", "a-", "a/../b", "a:b", "ä", "a" * 65, "a\n"])
def test_what_is_no_tenant(tenant: str) -> None:
    with pytest.raises(KnownError) as raised:
        new_key(tenant, "", frozenset(Scope), 0, None)
    assert raised.value.code == "tenant_invalid"
    assert repr(tenant[:80]) in raised.value.message


def test_a_stranger_learns_nothing_about_keys(
    locked: Stack, key_for: Callable[..., str], send: Send, command: Command
) -> None:
    """A wrong secret of a good key, of a revoked one, and an id that is not there look the same."""
    token, revoked = key_for("team-a"), key_for("team-a")
    assert command("keys", "revoke", revoked.split("_")[1]).returncode == 0
    ids = [token.split("_")[1], revoked.split("_")[1], "0" * 12]
    answers = [send("/v1/jobs", forged(key_id), address="192.0.2.10") for key_id in ids]
    invalid = (401, "key_invalid", 'Bearer realm="known", error="invalid_token"')
    assert [outcome(answer) for answer in answers] == [invalid] * 3
    assert len({answer.json()["detail"] + answer.json()["hint"] for answer in answers}) == 1
    assert send("/v1/jobs", token).status_code == 200
    assert outcome(send("/v1/jobs", revoked)) == (401, "key_revoked", invalid[2])
    assert outcome(send("/v1/jobs")) == (401, "key_missing", 'Bearer realm="known"')
    lacking = send("/v1/uploads", key_for("team-a", ("read",)), "POST")
    assert outcome(lacking) == (403, "scope_missing", 'Bearer realm="known", error="insufficient_scope"')


def test_no_request_after_its_expiry_is_answered(locked: Stack, key_for: Callable[..., str], send: Send) -> None:
    """Nor by what the API remembers of a good key."""
    repository = KeyRepository(connect(locked.store_url))
    token = key_for("brief", lasts_ms=1500)
    key = repository.get(token.split("_")[1])
    assert key is not None
    assert key.expires_at is not None
    while True:
        before = repository.now()
        answer = send("/v1/jobs", token)
        if answer.status_code != 200:
            break
        assert before < key.expires_at
        time.sleep(0.02)  # or the rate limit comes first
    assert outcome(answer)[:2] == (401, "key_expired")
    assert repository.now() >= key.expires_at


def test_the_operators_mistakes_are_explained(command: Command) -> None:
    for words, code in (
        (("keys", "create", "--tenant", "Team A"), "tenant_invalid"),
        (("keys", "create", "--tenant", "a", "--expires", "soon"), "usage"),
        (("keys", "create", "--tenant", "a", "--expires", "0d"), "usage"),
        (("keys", "revoke", "nobody"), "key_not_found"),
        (("audit", "--since", "yesterday"), "usage"),
    ):
        done = command(*words)
        assert (done.returncode, done.stdout) == (1, ""), words
        assert f"({code})" in done.stderr
    assert command("keys", "create", "--tenant", "a", "--scope", "root").returncode == 2


def test_commands_take_a_key(locked: Stack, command: Command, key_for: Callable[..., str]) -> None:
    made = command("keys", "create", "--tenant", "cli", "--scope", "read", "--expires", "12h")
    token = made.stdout.removesuffix("\n")
    assert parse_token(token), "the key is alone on standard output"
    assert token not in made.stderr
    listed = ("jobs", "list", "--server", locked.url, "--json")
    assert "(key_missing)" in command(*listed).stderr
    assert json.loads(command(*listed, "--api-key", token).stdout)["data"] == []
    assert json.loads(command(*listed, KNOWN_API_KEY=token).stdout)["data"] == []
    cancel = command("jobs", "cancel", f"job_{'0' * 24}", "--server", locked.url, KNOWN_API_KEY=token)
    assert (cancel.returncode, "(scope_missing)" in cancel.stderr) == (1, True)
    for broken in ("known key", "kéy", "key\n"):
        with pytest.raises(KnownError) as raised:
            Client(locked.url, broken)
        assert raised.value.code == "key_invalid"


def test_the_operators_commands_are_declared_and_light() -> None:
    """What pyproject.toml declares is there, and `known --help` loads no server and no network for it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["known.commands"]
    assert set(declared) == {"audit", "keys"}
    for target in declared.values():
        module, _, name = target.partition(":")
        found = getattr(importlib.import_module(module), name)
        assert isinstance(found, typer.Typer) or callable(found)
    heavy = "{'torch', 'fastapi', 'redis', 'celery', 'limits', 'pydantic'}"
    program = f"import sys, known_core.cli; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"
