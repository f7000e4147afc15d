"""Uploads: streamed, bounded, hashed; what is refused leaves nothing."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from known_core.client import Client
from known_core.stack import Stack
from tests.chaos.scene import until

_BYTES = {"Content-Type": "application/octet-stream"}


def _left(stack: Stack, filename: str) -> list[Path]:
    """The folders of uploads of that name; requests of other tests may still be under way."""
    root = stack.logs.parent / "uploads" / "local"
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        for name in ("incoming.json", "upload.json"):
            with suppress(FileNotFoundError):  # it may go at any moment
                if f'"{filename}"' in (folder / name).read_text():
                    found.append(folder)
    return found


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
    url = f"{stack.url}/v1/uploads?filename=too-large"
    claimed = httpx.post(url, content=b"x" * (21 << 20), headers=_BYTES, timeout=60)
    chunked = httpx.post(url, content=_chunks(22), headers=_BYTES, timeout=60)
    for answer in (claimed, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "upload_too_large"
        assert str(20 << 20) in answer.json()["detail"]
    assert _left(stack, "too-large") == []


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
    url = f"{stack.url}/v1/uploads"
    answer = httpx.post(url, params={**parameters, "filename": code}, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert _left(stack, code) == []


def test_an_upload_cut_off_leaves_nothing(stack: Stack) -> None:
    seen = []

    def body() -> Iterator[bytes]:
        yield b"x" * 1000
        until(lambda: _left(stack, "cut-off"), "the upload has not begun")
        seen.extend(_left(stack, "cut-off"))
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        httpx.post(f"{stack.url}/v1/uploads?filename=cut-off", content=body(), headers=_BYTES)
    until(lambda: not _left(stack, "cut-off"), "the upload is still there", 20)  # before it would count as stalled
    assert len(seen) == 1


def test_a_folder_is_uploaded_as_a_zip(client: Client, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert client.upload(tmp_path / "model").startswith("upl_")
