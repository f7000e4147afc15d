"""Requests that are hostile themselves: bodies, headers, ranges, names."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from known_core.stack import Stack
from tests.untrusted.conftest import HTTP
from tests.untrusted.test_corpus import BINARY, state_of

JSON = {"Content-Type": "application/json"}
LIMIT = 8 << 20  # KNOWN_MAX_REQUEST_BYTES


def answer_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 100_000
    return problem


@pytest.mark.parametrize("depth", [100, 500, 900, 1_500, 5_000, 1_000_000])
@pytest.mark.parametrize("where", ["", "task", "metadata", "model"])
def test_deep_json(stack: Stack, depth: int, where: str) -> None:
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        body = opened * depth + "1" + closed * depth
        answer = HTTP.post(f"{stack.url}/v1/enhance", content=f'{{"{where}": {body}}}' if where else body, headers=JSON)
        assert answer.status_code in (400, 422), answer.text
        answer_of(answer, answer.status_code, "json_invalid" if answer.status_code == 400 else "request_invalid")


def test_a_config_that_is_deep(stack: Stack) -> None:
    for depth in (70, 300, 900):
        body = '{"trajectory": null, "model": {"upload_id": "upl_' + "0" * 24 + '", "config": {"a": ' + "[" * depth
        body += "]" * depth + '}}, "dataset": {"upload_id": "upl_' + "0" * 24 + '"}}'
        answer = HTTP.post(f"{stack.url}/v1/enhance", content=body, headers=JSON)
        assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "9" * 400, "9" * 4_000, "9" * 5_000, "NaN", "Infinity", "0." + "1" * 10_000]
)
@pytest.mark.parametrize("field", ["learning_rate", "seed", "epochs_per_stage"])
def test_huge_numbers(stack: Stack, number: str, field: str) -> None:
    body = '{"trajectory": [], "forgetting": {"' + field + '": ' + number + "}}"
    answer = HTTP.post(f"{stack.url}/v1/enhance", content=body, headers=JSON)
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\xff\xfe", b'"\xed\xa0\x80"', b'{"task": "\\ud800"}', b"null", b"[]", b"1"]
)
def test_bodies_that_are_no_request(stack: Stack, body: bytes) -> None:
    answer = HTTP.post(f"{stack.url}/v1/enhance", content=body, headers=JSON)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_many_wrong_fields_make_no_long_answer(stack: Stack) -> None:
    body = json.dumps({f"field{index}": index for index in range(100_000)})
    answer = HTTP.post(f"{stack.url}/v1/enhance", content=body, headers=JSON)
    problem = answer_of(answer, 422, "request_invalid")
    assert len(problem["errors"]) == 100


def _chunks(size: int) -> Iterator[bytes]:
    yield b'{"task": "'
    for _ in range(size >> 20):
        yield b"x" * (1 << 20)
    yield b'"}'


@pytest.mark.parametrize("path", ["/v1/enhance", "/enhance"])
def test_giant_bodies(stack: Stack, path: str) -> None:
    """Whether or not their length is claimed."""
    body = b'{"task": "' + b"x" * LIMIT + b'"}'
    for content in (body, _chunks(LIMIT)):
        answer_of(HTTP.post(f"{stack.url}{path}", content=content, headers=JSON), 413, "request_too_large")
    smaller = HTTP.post(f"{stack.url}{path}", content=_chunks(LIMIT - (1 << 20)), headers=JSON)
    answer_of(smaller, 422, "request_invalid")


def test_a_claimed_length_is_refused_before_a_byte_comes(stack: Stack) -> None:
    head = (
        b"POST /v1/enhance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1%s\r\n\r\n"
    )
    assert b" 413 " in raw(stack, head % (b"0" * 12)).split(b"\r\n")[0]
    assert b" 400 " in raw(stack, head % (b"0" * 5_000)).split(b"\r\n")[0]


def raw(stack: Stack, *parts: bytes, end: bool = False) -> bytes:
    """What a server says to these bytes; ``end`` closes our side after them."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65_536)


@pytest.mark.parametrize(("path", "status"), [("/v1/uploads", 415), ("/v1/enhance", 422)])
def test_a_multipart_flood(stack: Stack, path: str, status: int) -> None:
    before = state_of(stack)
    part = b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename*=UTF-8''..%2F..%2Fevil\r\n\r\nx\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = HTTP.post(f"{stack.url}{path}", content=part * 20_000 + b"--b--", headers=headers)
    assert answer.status_code == status, answer.text
    assert state_of(stack) == before


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/cron.d/evil", "..\\evil", "a\0b", "x" * 255, "CON", "\u202efdp.exe", "é\r\nX-Evil: 1"]
)
def test_names_of_uploads_are_text(stack: Stack, name: str) -> None:
    """In the query and in Content-Disposition; the server names the files."""
    headers = {**BINARY, "Content-Disposition": "attachment; filename*=UTF-8''..%2F..%2Fevil"}
    answer = HTTP.post(f"{stack.url}/v1/uploads", params={"filename": name}, content=b"x", headers=headers)
    assert answer.status_code == 201
    root = stack.logs.parent
    assert {path.name for path in (root / "uploads" / "local" / answer.json()["id"]).iterdir()} == {
        "content", "upload.json",
    }  # fmt: skip
    assert not list(root.rglob("*evil*"))
    assert "x-evil" not in answer.headers


UPLOAD = b"POST /v1/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"


def test_a_length_that_lies(stack: Stack) -> None:
    """Too short: what is more is no upload. Too long, and the connection ends: nothing is kept."""
    before = state_of(stack)["uploads"]
    raw(stack, UPLOAD + b"Content-Length: 3\r\n\r\nabcdefgh\r\n\r\n")
    for _ in range(50):  # the server may close on what follows before it has dropped the upload
        time.sleep(0.1)
        kept = state_of(stack)["uploads"]
        new = [path for path in kept.keys() - before.keys() if path.name == "content"]
        contents = [path.read_bytes() for path in new if path.exists()]
        if contents in ([], [b"abc"]) and state_of(stack)["uploads"] == kept:
            break
    assert contents in ([], [b"abc"])
    raw(stack, UPLOAD + b"Content-Length: 300\r\n\r\nabc", end=True)
    for _ in range(50):
        if state_of(stack)["uploads"] == kept:
            break
        time.sleep(0.1)
    assert state_of(stack)["uploads"] == kept


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"+5", b"0x10", b"5, 6"])
def test_lengths_that_are_none(stack: Stack, length: bytes) -> None:
    assert b" 400 " in raw(stack, UPLOAD + b"Content-Length: " + length + b"\r\n\r\nabcde").split(b"\r\n")[0]


def test_a_length_and_chunks_at_once(stack: Stack) -> None:
    """Request smuggling."""
    smuggled = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n"
    assert b" 400 " in raw(stack, UPLOAD + smuggled).split(b"\r\n")[0]


def test_a_slow_body_holds_up_nobody_else(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as slow:
        slow.sendall(UPLOAD + b"Content-Length: 6\r\n\r\n")
        for byte in b"abcdef":
            assert HTTP.get(f"{stack.url}/healthz").status_code == 200
            slow.sendall(bytes([byte]))
        assert b" 201 " in slow.recv(65_536).split(b"\r\n")[0]


@pytest.mark.parametrize("wanted", [
    "bytes=" + ",".join(f"{index}-{index}" for index in range(10_000)), "bytes=" + "0-," * 10_000,
    "bytes=5-1", "bytes=999999999999-", "bytes=-0", "bytes=a-b", "bytes=-" + "9" * 5_000, "bytes=0-" + "9" * 5_000,
    "lines=0-1",
], ids=lambda text: text[:20])  # fmt: skip
def test_ranges(stack: Stack, finished_job: str, wanted: str) -> None:
    """Nothing, the whole file, or what was asked for; never more than the file."""
    url = f"{stack.url}/v1/jobs/{finished_job}/artifacts/report.json"
    size = len(HTTP.get(url).content)
    try:
        answer = HTTP.get(url, headers={"Range": wanted})
    except httpx.RemoteProtocolError:  # the header is longer than the server takes
        return
    assert answer.status_code in (200, 206, 400, 416, 431), answer.status_code
    assert len(answer.content) <= size


@pytest.mark.parametrize(
    "path",
    ["../spec.json", "..%2f..%2fspec.json", "%2e%2e/spec.json", "/etc/passwd", "x2/../../spec.json", "a%00b", "%ff"],
)
def test_paths_of_artifacts(stack: Stack, finished_job: str, path: str) -> None:
    head = f"GET /v1/jobs/{finished_job}/artifacts/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    assert b" 404 " in raw(stack, head.encode()).split(b"\r\n")[0]


def test_pages_after_what_is_no_id(stack: Stack, finished_job: str) -> None:
    for path in (f"/v1/jobs/{finished_job}/events?after=", "/v1/audit?before="):
        for value in ("\u0661-\u0661", "0-0", "9999999999999999-9999999999999999", "1-", "-1", "%00"):
            answer = HTTP.get(stack.url + path + value)
            assert answer.status_code in (200, 403, 422), (path, value, answer.text)


@pytest.mark.parametrize("query", [
    "limit=%00", "after=%00", "after=%ff", "after=../x", "status=%ed%a0%80", "limit=1&limit=2", "limit=" + "9" * 5_000,
])  # fmt: skip
def test_queries(stack: Stack, query: str) -> None:
    answer = HTTP.get(f"{stack.url}/v1/jobs?{query}")
    assert answer.status_code in (200, 404, 422), answer.text


@pytest.mark.parametrize(
    "header", ["Idempotency-Key", "X-Hub-Token", "If-None-Match", "Last-Event-ID", "Accept", "Cookie"]
)
def test_headers(stack: Stack, finished_job: str, header: str) -> None:
    for value in (b"\xff\xfe", b"x" * 10_000, b"a\tb", b"%00", b"\x85"):
        for method, path in (("POST", "/v1/enhance"), ("GET", f"/v1/jobs/{finished_job}"),
                             ("GET", f"/v1/jobs/{finished_job}/events")):  # fmt: skip
            answer = HTTP.request(method, stack.url + path, headers={header.encode(): value})
            assert answer.status_code < 500, (method, path, value, answer.text)
