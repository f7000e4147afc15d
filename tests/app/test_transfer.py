"""The client's uploads and downloads, cut in every way: they go on, and the bytes are right."""

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.conftest import SETTINGS
from tests.cutting import cutting

DATA = random.Random(3).randbytes(6 << 20)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.bin").write_bytes(DATA)
    return tmp_path / "model.bin"


def check(stack: Stack, upload_id: str) -> None:
    view = httpx.get(f"{stack.url}/v1/uploads/{upload_id}").json()
    assert (view["status"], view["sha256"]) == ("complete", hashlib.sha256(DATA).hexdigest())


def remembered(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def patient(transfer: Callable[[], Any]) -> Any:
    """Again, while the first request is cut already: before there is something to resume, an error is said at once."""
    for _ in range(50):
        try:
            return transfer()
        except KnownError as error:
            if error.code != "server_unreachable":
                raise
    raise AssertionError("never got through")


def test_an_upload_over_connections_that_are_cut(stack: Stack, file: Path, tmp_path: Path) -> None:
    with cutting(stack.port, cuts=8, at_most=2 << 20) as (url, proxy), Client(url) as client:
        upload_id = patient(lambda: client.upload(file))
        assert proxy.cuts < 8
    check(stack, upload_id)
    assert remembered(tmp_path) == []


def test_an_interrupted_upload_goes_on_with_the_same_command(stack: Stack, file: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 4 << 20:
            raise KeyboardInterrupt

    with Client(stack.url) as client, pytest.raises(KeyboardInterrupt):
        client.upload(file, interrupt)
    [memory] = remembered(tmp_path)
    place = memory.read_text()
    seen: list[int] = []
    with Client(stack.url) as client:
        upload_id = client.upload(file, lambda done, total: seen.append(done))
    assert place.endswith(upload_id)
    assert seen[0] > 0  # not from the start
    check(stack, upload_id)


def test_an_upload_outlives_a_restart_of_the_api(tmp_path: Path, file: Path) -> None:
    with Stack(tmp_path / "stack", port=0, environment=SETTINGS) as stack:
        restarted = threading.Event()

        def restart() -> None:
            os.kill(stack.pids()["api"], signal.SIGKILL)
            time.sleep(1)
            stack.restart("api")

        def on_bytes(done: int, total: int) -> None:
            if done > 3 << 20 and not restarted.is_set():
                restarted.set()
                restart()

        with Client(stack.url) as client:
            upload_id = client.upload(file, on_bytes)
        assert restarted.is_set()
        check(stack, upload_id)


def test_an_upload_the_server_no_longer_has_begins_anew(stack: Stack, file: Path, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        with pytest.raises(KeyboardInterrupt):
            client.upload(file, lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt))
        [memory] = remembered(tmp_path)
        assert httpx.delete(stack.url + memory.read_text()).status_code == 204
        check(stack, client.upload(file))


def test_no_server_is_said_at_once(file: Path) -> None:
    begun = time.monotonic()
    with Client("http://127.0.0.1:9") as client, pytest.raises(KnownError, match="server_unreachable"):
        client.upload(file)
    assert time.monotonic() - begun < 30  # it would be 60 for an upload that had begun


def test_a_download_over_connections_that_are_cut(stack: Stack, finished_job: str, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        total = sum(entry["bytes"] for entry in client.manifest(finished_job)["files"])
    with cutting(stack.port, cuts=10, at_most=6_000) as (url, proxy), Client(url) as client:
        seen: list[tuple[int, int]] = []
        count = patient(
            lambda: client.download(finished_job, tmp_path / "out", on_bytes=lambda *done: seen.append(done))
        )
        assert proxy.cuts == 0
    assert count > 0
    assert seen[-1] == (total, total)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_what_an_interrupted_download_left_is_taken_up(stack: Stack, finished_job: str, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        files = client.files(finished_job)
        entry = max(files, key=lambda file: int(file["bytes"]))
        body = httpx.get(stack.url + entry["url"]).content
        target = tmp_path / entry["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{entry['sha256'][:16]}.partial")
        partial.write_bytes(body[:1000])
        seen: list[int] = []
        client.download(finished_job, tmp_path, on_bytes=lambda done, total: seen.append(done))
        assert target.read_bytes() == body
        assert not partial.exists()
        target.unlink()
        partial.write_bytes(b"other bytes")
        with pytest.raises(KnownError, match="checksum_mismatch"):
            client.download(finished_job, tmp_path)
        client.download(finished_job, tmp_path)  # nothing wrong was kept
        assert target.read_bytes() == body


def test_a_folder_twice_is_one_upload_in_the_making(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.bin").write_bytes(DATA)

    def interrupt(done: int, total: int) -> None:
        if done > 4 << 20:
            raise KeyboardInterrupt

    with Client(stack.url) as client:
        with pytest.raises(KeyboardInterrupt):
            client.upload(tmp_path / "folder", interrupt)
        [memory] = remembered(tmp_path)
        assert memory.read_text().endswith(client.upload(tmp_path / "folder"))
