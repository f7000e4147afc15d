"""Uploads: streamed, bounded, hashed; what is refused leaves nothing."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from known_core.client import Client
from known_core.stack import Stack

_BYTES = {"Content-Type": "application/octet-stream"}


def _folders(stack: Stack) -> set[Path]:
    root = stack.logs.parent / "uploads" / "local"
    return set(root.iterdir()) if root.is_dir() else set()


def test_an_upload_is_kept_and_described(stack: Stack) -> None:
    data = b"x" * 100_000
    answer = httpx.post(f"{stack.url}/v1/uploads", params={"filename": "../../evil"}, content=data, headers=_BYTES)
    assert answer.status_code == 201
    upload = answer.json()
    assert upload["bytes"] == len(data)
    assert upload["sha256"] == hashlib.sha256(data).hexdigest()
    assert upload["filename"] == "../../evil"  # text, not a path
    assert httpx.get(f"{stack.url}/v1/uploads/{upload['id']}").json() == upload
    assert (stack.logs.parent / "uploads" / "local" / upload["id"] / "content").read_bytes() == data


def _chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * (1 << 20)


def test_too_large_is_refused_whether_or_not_the_length_is_claimed(stack: Stack) -> None:
    before = _folders(stack)
    claimed = httpx.post(f"{stack.url}/v1/uploads", content=b"x" * (21 << 20), headers=_BYTES, timeout=60)
    chunked = httpx.post(f"{stack.url}/v1/uploads", content=_chunks(22), headers=_BYTES, timeout=60)
    for answer in (claimed, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "upload_too_large"
        assert str(20 << 20) in answer.json()["detail"]
    assert _folders(stack) == before


@pytest.mark.parametrize(
    ("parameters", "content", "headers", "status", "code"),
    [
        ({"sha256": "0" * 64}, b"data", _BYTES, 422, "checksum_mismatch"),
        ({"sha256": "xyz"}, b"data", _BYTES, 422, "request_invalid"),
        ({}, b"", _BYTES, 422, "upload_empty"),
        ({}, b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, 415, "media_type_unsupported"),
    ],
)
def test_bad_uploads_leave_nothing(
    stack: Stack, parameters: dict[str, str], content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    before = _folders(stack)
    answer = httpx.post(f"{stack.url}/v1/uploads", params=parameters, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert _folders(stack) == before


def test_an_upload_cut_off_leaves_nothing(stack: Stack) -> None:
    before = _folders(stack)

    def body() -> Iterator[bytes]:
        yield b"x" * 1000
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        httpx.post(f"{stack.url}/v1/uploads", content=body(), headers=_BYTES)
    deadline = time.monotonic() + 30
    while _folders(stack) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _folders(stack) == before


def test_a_folder_is_uploaded_as_a_zip(client: Client, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert client.upload(tmp_path / "model").startswith("upl_")
