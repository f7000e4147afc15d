"""tus 1.0.0: what the protocol asks of a server, with its own client, with requests by hand, and with kill -9."""

import base64
import hashlib
import io
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient

from known_core.stack import Stack
from tests.conftest import SETTINGS

_TUS = {"Tus-Resumable": "1.0.0"}
_CHUNK = {**_TUS, "Content-Type": "application/offset+octet-stream"}
DATA = random.Random(0).randbytes(300_000)


def create(stack: Stack, length: int = len(DATA), said: str = "") -> str:
    """The address of a new upload."""
    answer = httpx.post(
        f"{stack.url}/v1/uploads", headers={**_TUS, "Upload-Length": str(length), "Upload-Metadata": said}
    )
    assert answer.status_code == 201, answer.text
    return stack.url + answer.headers["location"]


def patch(url: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
    return httpx.patch(url, content=data, headers={**_CHUNK, "Upload-Offset": str(offset), **headers}, timeout=60)


def offset(url: str) -> int:
    answer = httpx.head(url, headers=_TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def checksum(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def content(stack: Stack, url: str) -> bytes:
    return (stack.logs.parent / "uploads" / "local" / url.rpartition("/")[2] / "content").read_bytes()


@pytest.mark.parametrize("chunk_size", [70_001, 1 << 20])
@pytest.mark.parametrize("checked", [False, True])
def test_the_client_of_the_protocol_s_authors(stack: Stack, chunk_size: int, checked: bool) -> None:
    given = {"filename": "modèle, zwei.bin", "sha256": hashlib.sha256(DATA).hexdigest()}
    client = TusClient(f"{stack.url}/v1/uploads")
    file = io.BytesIO(DATA)
    first: Any = client.uploader(file_stream=file, chunk_size=chunk_size, metadata=given, upload_checksum=checked)
    first.upload_chunk()
    resumed: Any = client.uploader(file_stream=file, url=first.url, chunk_size=chunk_size, upload_checksum=checked)
    assert resumed.offset == min(chunk_size, len(DATA))
    resumed.upload()
    view = httpx.get(resumed.url).json()
    assert (view["status"], view["filename"]) == ("complete", given["filename"])
    assert view["sha256"] == given["sha256"]
    assert content(stack, resumed.url) == DATA


def test_what_the_server_can(stack: Stack) -> None:
    answer = httpx.options(f"{stack.url}/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == SETTINGS["KNOWN_MAX_UPLOAD_BYTES"]
    assert set(answer.headers["tus-checksum-algorithm"].split(",")) >= {"sha1", "sha256"}
    extensions = {"creation", "creation-with-upload", "expiration", "checksum", "termination"}
    assert set(answer.headers["tus-extension"].split(",")) == extensions


def test_an_upload_from_creation_to_its_end(stack: Stack) -> None:
    said = metadata(filename="a.bin", sha256=hashlib.sha256(DATA).hexdigest())
    url = create(stack, said=said)
    head = httpx.head(url, headers=_TUS)
    assert (head.status_code, head.headers["cache-control"]) == (200, "no-store")
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("0", str(len(DATA)))
    assert (head.headers["tus-resumable"], head.headers["upload-metadata"]) == ("1.0.0", said)
    part = patch(url, 0, DATA[:1000])
    assert (part.status_code, part.headers["upload-offset"], part.headers["tus-resumable"]) == (204, "1000", "1.0.0")
    assert parsedate_to_datetime(part.headers["upload-expires"]).timestamp() > time.time() + 3600
    assert httpx.get(url).json() | {"id": ""} == {
        "id": "", "object": "upload", "status": "incomplete", "filename": "a.bin", "bytes": len(DATA), "received": 1000,
        "sha256": None,
    }  # fmt: skip
    last = patch(url, 1000, DATA[1000:])
    assert (last.status_code, last.headers["upload-offset"]) == (204, str(len(DATA)))
    assert "upload-expires" not in last.headers
    assert httpx.get(url).json()["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert offset(url) == len(DATA)
    assert patch(url, len(DATA), b"").status_code == 204  # a client that does not know that it is done
    assert patch(url, len(DATA), b"x").status_code == 413


def test_creation_may_bring_the_first_bytes_or_all(stack: Stack) -> None:
    for sent in (DATA[:10], DATA):
        headers = {**_CHUNK, "Upload-Length": str(len(DATA))}
        answer = httpx.post(f"{stack.url}/v1/uploads", headers=headers, content=sent)
        assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(len(sent)))
        assert offset(stack.url + answer.headers["location"]) == len(sent)
    assert answer.json()["status"] == "complete"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Upload-Offset": "7"}, 409, "offset_mismatch"),
        ({"Upload-Offset": ""}, 422, "request_invalid"),
        ({"Upload-Offset": "-1"}, 422, "request_invalid"),
        ({"Content-Type": "application/octet-stream"}, 415, "media_type_unsupported"),
        ({"Tus-Resumable": "0.2.2"}, 412, "tus_version_unsupported"),
        ({"Upload-Checksum": "sha1 AAAA"}, 400, "tus_header_invalid"),
        ({"Upload-Checksum": "md5 1B2M2Y8AsgTpgAmY7PhCfg=="}, 400, "tus_header_invalid"),
        ({"Upload-Checksum": checksum(b"other")}, 460, "chunk_checksum_mismatch"),
    ],
)
def test_a_patch_that_is_refused_changes_nothing(stack: Stack, headers: dict[str, str], status: int, code: str) -> None:
    url = create(stack)
    assert patch(url, 0, DATA[:5]).status_code == 204
    answer = httpx.patch(url, content=b"bytes", headers={**_CHUNK, "Upload-Offset": "5", **headers})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert answer.headers["tus-version"] == "1.0.0"
    assert offset(url) == 5
    assert patch(url, 5, DATA[5:]).status_code == 204
    assert content(stack, url) == DATA


def test_a_patch_without_the_version_or_the_offset_is_refused(stack: Stack) -> None:
    url = create(stack)
    bare = httpx.patch(url, content=b"x", headers={"Content-Type": _CHUNK["Content-Type"], "Upload-Offset": "0"})
    assert (bare.status_code, bare.json()["code"]) == (412, "tus_version_unsupported")
    assert httpx.patch(url, content=b"x", headers=_CHUNK).json()["code"] == "tus_header_invalid"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "tus_header_invalid"),
        ({"Upload-Length": "x"}, 422, "request_invalid"),
        ({"Upload-Length": "-1"}, 422, "request_invalid"),
        ({"Upload-Length": "0"}, 422, "upload_empty"),
        ({"Upload-Length": str(1 + (20 << 20))}, 413, "upload_too_large"),
        ({"Upload-Length": "5", "Tus-Resumable": "2.0.0"}, 412, "tus_version_unsupported"),
        ({"Upload-Length": "5", "Upload-Metadata": "filename YQ==,filename Yg=="}, 400, "tus_header_invalid"),
        ({"Upload-Length": "5", "Upload-Metadata": "filename %%%"}, 400, "tus_header_invalid"),
        ({"Upload-Length": "5", "Upload-Metadata": metadata(sha256="abc")}, 400, "tus_header_invalid"),
    ],
)
def test_a_creation_that_is_refused(stack: Stack, headers: dict[str, str], status: int, code: str) -> None:
    answer = httpx.post(f"{stack.url}/v1/uploads", headers={**_TUS, **headers})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert "location" not in answer.headers


def test_no_more_than_the_length_that_was_said(stack: Stack) -> None:
    url = create(stack, length=10)
    assert patch(url, 0, b"x" * 11).json()["code"] == "upload_overrun"
    assert offset(url) == 0

    def chunked() -> Iterator[bytes]:
        yield b"x" * 11

    answer = httpx.patch(url, content=chunked(), headers={**_CHUNK, "Upload-Offset": "0"})
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_overrun")
    assert patch(url, offset(url), b"x" * (10 - offset(url))).status_code == 204


def test_a_file_with_another_sha256_than_said_is_gone(stack: Stack) -> None:
    url = create(stack, length=5, said=metadata(sha256="0" * 64))
    answer = patch(url, 0, b"bytes")
    assert (answer.status_code, answer.json()["code"]) == (422, "checksum_mismatch")
    gone = httpx.head(url, headers=_TUS)
    assert gone.status_code == 404
    assert "upload-offset" not in gone.headers


def test_termination(stack: Stack) -> None:
    for sent in (b"x", DATA):
        url = create(stack)
        assert patch(url, 0, sent).status_code == 204
        assert httpx.delete(url, headers=_TUS).status_code == 204
        assert httpx.head(url, headers=_TUS).status_code == 404
        assert httpx.delete(url, headers=_TUS).status_code == 404
        assert patch(url, len(sent), b"x").status_code == 404


def test_the_method_may_be_in_a_header(stack: Stack) -> None:
    url = create(stack, length=5)
    headers = {**_CHUNK, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert httpx.post(url, content=b"bytes", headers=headers).status_code == 204
    assert offset(url) == 5


def open_patch(url: str, at: int, length: int, extra: str = "") -> socket.socket:
    """A connection on which a PATCH of ``length`` bytes has begun, without any of them."""
    target = httpx.URL(url)
    connection = socket.create_connection((target.host, target.port or 80), timeout=60)
    lines = [
        f"PATCH {target.path} HTTP/1.1", f"Host: {target.host}", "Tus-Resumable: 1.0.0", f"Upload-Offset: {at}",
        "Content-Type: application/offset+octet-stream", f"Content-Length: {length}",
    ]  # fmt: skip
    connection.sendall(("\r\n".join(lines) + f"\r\n{extra}\r\n").encode())
    return connection


def wait_until(what: str, true: object) -> None:
    assert callable(true)
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(what)


def is_locked(url: str) -> bool:
    return patch(url, 0, b"").status_code == 423


def test_one_writer_at_a_time(stack: Stack) -> None:
    url = create(stack)
    with open_patch(url, 0, len(DATA)) as first:
        wait_until("the first writer holds it", lambda: is_locked(url))
        second = patch(url, 0, DATA)
        assert (second.status_code, second.json()["code"]) == (423, "upload_locked")
        assert "retry-after" in second.headers
        assert httpx.delete(url, headers=_TUS).status_code == 423
        first.sendall(DATA)
        assert first.recv(1000).startswith(b"HTTP/1.1 204")
    assert content(stack, url) == DATA


def test_many_at_once_write_one_file(stack: Stack) -> None:
    """Writers that race for every piece, each with other bytes: whoever wins, no piece is torn."""
    piece, pieces = 20_000, 15
    url = create(stack, length=piece * pieces)

    def write(fill: bytes) -> None:
        while (at := offset(url)) < piece * pieces:
            patch(url, at, fill * piece)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = content(stack, url)
    assert len(data) == piece * pieces
    assert all(len(set(data[i * piece : (i + 1) * piece])) == 1 for i in range(pieces))
    assert httpx.get(url).json()["sha256"] == hashlib.sha256(data).hexdigest()


def test_connections_cut_at_random_lose_nothing(stack: Stack) -> None:
    chance = random.Random(1)
    url = create(stack, said=metadata(sha256=hashlib.sha256(DATA).hexdigest()))
    for _ in range(12):
        wait_until("nobody writes", lambda: not is_locked(url))
        at = offset(url)
        end = min(at + chance.randrange(60_000), len(DATA) - 1)
        with open_patch(url, at, len(DATA) - at) as connection:
            connection.sendall(DATA[at:end])
    wait_until("nobody writes", lambda: not is_locked(url))
    at = offset(url)
    assert DATA.startswith(content(stack, url))
    assert patch(url, at, DATA[at:]).status_code == 204
    assert httpx.get(url).json()["status"] == "complete"


def test_bytes_with_a_checksum_count_all_or_not_at_all(stack: Stack) -> None:
    url = create(stack)
    extra = f"Upload-Checksum: {checksum(DATA)}\r\n"
    with open_patch(url, 0, len(DATA), extra) as connection:
        connection.sendall(DATA[:200_000])
    wait_until("nobody writes", lambda: not is_locked(url))
    assert offset(url) == 0
    assert patch(url, 0, DATA, **{"Upload-Checksum": checksum(DATA, "sha1")}).status_code == 204


@pytest.fixture
def small_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own, with little room and little patience."""
    limits = {
        "KNOWN_MAX_TENANT_BYTES": str(1 << 20),
        "KNOWN_UPLOAD_IDLE_SECONDS": "1",
        "KNOWN_UPLOAD_EXPIRY_SECONDS": "20",
        "KNOWN_MAX_UPLOAD_BYTES": str(64 << 20),
    }
    with Stack(tmp_path / "stack", port=0, environment={**SETTINGS, **limits}) as running:
        yield running


def kill_api(stack: Stack) -> None:
    """kill -9 of the API, and a new one in its place."""
    os.kill(stack.pids()["api"], signal.SIGKILL)
    stack.restart("api")
    wait_until("the new one answers", lambda: answers(stack))


def answers(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_kill_9_of_the_api_in_the_middle_of_a_patch(small_stack: Stack) -> None:
    data = random.Random(2).randbytes(1 << 20)
    said = metadata(sha256=hashlib.sha256(data).hexdigest())
    url = create(small_stack, len(data), said=said)
    assert patch(url, 0, data[:300_000]).status_code == 204
    for extra, least in (("", 300_000), (f"Upload-Checksum: {checksum(data[300_000:])}\r\n", 300_000)):
        at = offset(url)
        with open_patch(url, at, len(data) - at, extra) as connection:
            connection.sendall(data[at : at + 200_000])
            wait_until("the writer holds it", lambda: is_locked(url))
            kill_api(small_stack)
        assert offset(url) >= least  # what was acknowledged is there
        assert data.startswith(content(small_stack, url)[: offset(url)])
    at = offset(url)
    assert patch(url, at, data[at:]).status_code == 204
    assert content(small_stack, url) == data


def test_kill_9_between_the_last_byte_and_completion(small_stack: Stack) -> None:
    url = create(small_stack, 5)
    folder = small_stack.logs.parent / "uploads" / "local" / url.rpartition("/")[2]
    (folder / "content").write_bytes(b"bytes")  # all that a process killed then leaves
    assert offset(url) == 5
    assert httpx.get(url).json()["status"] == "complete"
    killed = create(small_stack, 5)
    folder = small_stack.logs.parent / "uploads" / "local" / killed.rpartition("/")[2]
    (folder / "content").write_bytes(b"bytes")
    (folder / "unverified").symlink_to("2")  # all that one killed while it checked the last three leaves
    assert offset(killed) == 2
    assert patch(killed, 2, b"tes").status_code == 204
    assert content(small_stack, killed) == b"bytes"


def test_a_tenant_s_uploads_take_no_more_than_its_quota(small_stack: Stack) -> None:
    half = create(small_stack, 1 << 19)  # counts from now on, though none of its bytes is here
    answers = []

    def post(**options: object) -> None:
        answers.append(httpx.post(f"{small_stack.url}/v1/uploads", timeout=60, **options))  # type: ignore[arg-type]

    threads = [
        threading.Thread(target=post, kwargs={"headers": {**_TUS, "Upload-Length": str(200_000)}}) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [413] * 6
    refused = next(answer for answer in answers if answer.status_code == 413)
    assert refused.json()["code"] == "storage_quota_exceeded"
    post(content=b"x" * 200_000)
    assert answers[-1].json()["code"] == "storage_quota_exceeded"
    post(content=iter([b"x" * 100_000] * 3))  # a body that does not say how long it is
    assert answers[-1].json()["code"] == "storage_quota_exceeded"
    assert httpx.delete(half).status_code == 204
    post(content=iter([b"x" * 100_000] * 3))
    assert answers[-1].status_code == 201


def test_a_body_that_stalls_is_given_up(small_stack: Stack) -> None:
    url = create(small_stack)
    with open_patch(url, 0, len(DATA)) as connection:
        connection.sendall(DATA[:1000])
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))  # until it is closed
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"upload_stalled" in answer
    assert offset(url) == 1000
    folder = small_stack.logs.parent / "uploads" / "local"
    before = set(folder.iterdir())
    target = httpx.URL(small_stack.url)
    with socket.create_connection((target.host, target.port or 80), timeout=60) as connection:
        connection.sendall(b"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nsome")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408")
    assert set(folder.iterdir()) == before


def test_an_upload_that_nobody_goes_on_with_expires(small_stack: Stack) -> None:
    url = create(small_stack)
    folder = small_stack.logs.parent / "uploads" / "local" / url.rpartition("/")[2]
    os.utime(folder / "content", (0, time.time() - 21))
    assert httpx.head(url, headers=_TUS).status_code == 410
    assert patch(url, 0, b"x").json()["code"] == "upload_expired"
