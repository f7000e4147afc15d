"""Without keys: this machine alone is answered, and no page of another site, however it gets here."""

import socket

import httpx
import pytest

from known_core.stack import Stack


def raw(stack: Stack, *headers: str, first: str = "GET /v1/jobs HTTP/1.1") -> tuple[int, bytes]:
    """Send these header lines as they are; what no client library would send."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        connection.sendall("\r\n".join([first, *headers, "Connection: close", "", ""]).encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return int(answer.split()[1]), answer


STRANGE = (
    "", "[::1", "a@localhost", "localhost/x", "localhost#a", "localhost:x", "localhost.a", "localhost.", "0x7f000001",
    "2130706433", "0.0.0.0", "[::]", "localhost, a",
)  # fmt: skip
LOOPBACK = (
    "localhost", "LOCALHOST:1", "known.localhost", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::ffff:127.0.0.1]",
)  # fmt: skip


@pytest.mark.parametrize("host", STRANGE)
def test_a_host_that_is_not_loopback_is_refused(stack: Stack, host: str) -> None:
    status, answer = raw(stack, f"Host: {host}")
    assert (status, b'"open_mode_is_local"' in answer) == (403, True)


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_loopback_host_is_answered(stack: Stack, host: str) -> None:
    assert raw(stack, f"Host: {host}")[0] == 200


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port", "Via"])
def test_what_came_through_a_proxy_is_refused(stack: Stack, name: str) -> None:
    status, answer = raw(stack, "Host: localhost", f"{name}: 127.0.0.1")
    assert (status, b'"open_mode_is_local"' in answer) == (403, True)


def test_a_page_of_another_site_changes_nothing(stack: Stack) -> None:
    """A form needs no leave of the browser to be sent here: its Origin is what tells it from our own page."""
    form = {"Content-Type": "text/plain"}
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://192.0.2.1:8000"):
        answer = httpx.post(f"{stack.url}/v1/uploads", content=b"x", headers=form | {"Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "open_mode_is_local"), origin
        assert origin in answer.json()["detail"]
    for origin in (stack.url, "http://localhost:3000", "https://known.localhost"):
        answer = httpx.get(f"{stack.url}/v1/jobs", headers={"Origin": origin})
        assert answer.status_code == 200, origin


def test_it_says_that_it_is_open(stack: Stack, locked: Stack) -> None:
    assert "OPEN: no API key is asked for" in (stack.logs / "api.log").read_text()
    assert httpx.get(f"{stack.url}/readyz").json()["access"] == "open"
    assert "OPEN" not in (locked.logs / "api.log").read_text()
    assert httpx.get(f"{locked.url}/readyz").json()["access"] == "keys"
