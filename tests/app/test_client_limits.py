"""The client and a service that asks for keys and limits requests."""

import time
from collections.abc import Callable, Iterator

import pytest

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.client import Client, errors
from known_core.stack import Stack
from tests.conftest import SETTINGS

RATE = 5  # requests in two seconds


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Callable[..., str]]]:
    """A service that takes few requests, and what makes keys for it."""
    environment = SETTINGS | {"KNOWN_ACCESS": "keys", "KNOWN_RATE_LIMIT": f"{RATE}/2 second"}
    with Stack(tmp_path_factory.mktemp("narrow"), port=0, environment=environment, workers=0) as stack:
        repository = KeyRepository(connect(stack.store_url))

        def make(tenant: str, *scopes: str) -> str:
            key, token = new_key(
                tenant, "test", frozenset(map(Scope, scopes or ("read", "write"))), repository.now(), None
            )
            repository.add(key)
            return token

        yield stack, make


def test_a_rate_limit_is_waited_for_as_long_as_the_service_says(narrow: tuple[Stack, Callable[..., str]]) -> None:
    stack, make = narrow
    with Client(stack.url, make("patient")) as client:
        begun = time.monotonic()
        for _ in range(2 * RATE + 1):
            assert client.capabilities().access == "keys"
        assert time.monotonic() - begun > 2  # the third handful cannot come sooner


def test_a_rate_limit_is_said_where_there_is_no_patience(narrow: tuple[Stack, Callable[..., str]]) -> None:
    stack, make = narrow

    def many(client: Client) -> None:
        for _ in range(3 * RATE):
            client.capabilities()

    with Client(stack.url, make("hasty"), patience_s=0) as client, pytest.raises(errors.RateLimited) as limited:
        many(client)
    assert (limited.value.status, limited.value.code) == (429, "rate_limited")
    assert limited.value.retry_after_s is not None


def test_keys_and_scopes(narrow: tuple[Stack, Callable[..., str]], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, make = narrow
    with Client(stack.url, "known_wrong") as client, pytest.raises(errors.Unauthorized, match="key_invalid"):
        client.capabilities()
    with Client(stack.url, make("reader", "read")) as client, pytest.raises(errors.ScopeMissing):
        client.audit()
    monkeypatch.setenv("KNOWN_SERVER", stack.url)
    monkeypatch.setenv("KNOWN_API_KEY", make("admin", "read", "admin"))
    with Client() as client:
        assert client.audit() == []
    with pytest.raises(errors.KeyInvalid, match="a space"):
        Client(api_key="two words")
