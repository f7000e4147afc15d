"""Storage against an S3 server that is a process of its own, in good weather and in bad."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.storage.storage import Storage
from known_core.errors import KnownError
from known_core.files import read_json, sha256_file, write_json
from tests.chaos.proxy import Proxy
from tests.cutting import cutting
from tests.storage.conftest import BUCKET, S3

LARGE = 21 << 20  # bytes: three parts


def write_random(path: Path, size: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(size).bytes(size))
    return sha256_file(path)


def facts(s3: S3, request: Any, key: str) -> dict[str, Any]:
    found: dict[str, Any] = s3.client.head_object(Bucket=BUCKET, Key=f"{request.node.name}/{key}")
    return found


@pytest.mark.parametrize("storage", ["moto"], indirect=True)  # asked directly
def test_a_large_file_goes_up_in_parts_and_comes_back(
    s3: S3, storage: Storage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sha256 = write_random(tmp_path / "large", LARGE)
    storage.put(tmp_path / "large", "a/large")
    found = facts(s3, request, "a/large")
    assert found["ContentLength"] == LARGE
    assert found["ETag"].strip('"').endswith("-3")  # of an object that was put together from three parts
    assert s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    storage.fetch("a/large", tmp_path / "back", sha256)
    assert sha256_file(tmp_path / "back") == sha256


def test_a_folder_is_there_when_its_record_is(storage: Storage, tmp_path: Path) -> None:
    stage = tmp_path / "run" / "work" / "fan-1"
    write_random(stage / "inner" / "weights [1].bin", 1000)
    write_json(stage / "stage.json", {"seconds": 1.5})
    (stage / "secret").symlink_to("/etc/passwd")  # what a process that a stranger steers may leave
    storage.put_folder(tmp_path / "run", "work/fan-1", "stages/job/fan-1", "stage.json")
    assert {file.key.removeprefix("stages/job/fan-1/") for file in storage.files("stages")} == {
        "inner/weights [1].bin", "stage.json"
    }  # fmt: skip
    storage.fetch_folder("stages/job/fan-1", tmp_path / "other" / "fan-1", "stage.json")
    back = tmp_path / "other" / "fan-1"
    assert read_json(back / "stage.json")["seconds"] == 1.5
    assert sha256_file(back / "inner" / "weights [1].bin") == sha256_file(stage / "inner" / "weights [1].bin")
    storage.delete("stages/job/fan-1/stage.json")
    with pytest.raises(KnownError, match="storage_missing"):
        storage.fetch_folder("stages/job/fan-1", tmp_path / "third", "stage.json")
    assert not (tmp_path / "third").exists()


def test_no_link_leads_out_of_the_folder(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write_json(outside / "stage.json", {})
    (tmp_path / "run" / "work").mkdir(parents=True)
    (tmp_path / "run" / "work" / "fan-1").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        storage.put_folder(tmp_path / "run", "work/fan-1", "stages/job/fan-1", "stage.json")
    assert storage.files() == []


def test_what_was_changed_in_the_bucket_is_not_taken(storage: Storage, tmp_path: Path) -> None:
    storage.write("a", b"other bytes")
    with pytest.raises(KnownError, match="checksum_mismatch"):
        storage.fetch("a", tmp_path / "a", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "a//b", "a\\b", "."])
def test_keys_stay_below_the_prefix(storage: Storage, path: str) -> None:
    with pytest.raises(KnownError, match="archive_path_invalid"):
        storage.write(path, b"")


def test_a_prefix_is_deleted_and_no_more(storage: Storage) -> None:
    for key in ("jobs/a/log.txt", "jobs/a/artifacts/x", "jobs/ab/log.txt"):
        storage.write(key, b"x")
    assert sorted(storage.children("jobs")) == ["a", "ab"]
    storage.delete("jobs/a", first="log.txt")
    assert [file.key for file in storage.files()] == ["jobs/ab/log.txt"]
    storage.delete("jobs/a")


def test_a_signed_url_opens_one_file_for_a_while(storage: Storage) -> None:
    storage.write("x/report é.html", b"<script>0123456789")
    storage.write("x/b", b"secret")
    url = storage.signed_url("x/report é.html", 3, "report é.html")
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"<script>0123456789")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    part = httpx.get(url, headers={"Range": "bytes=8-"})
    assert part.headers["Content-Range"] == "bytes 8-17/18"  # with status 200 of rclone's
    assert part.content == b"0123456789"
    assert httpx.get(re.sub(r"/x/[^?]*\?", "/x/b?", url)).status_code == 403
    assert httpx.get(url.replace("Expires=3", "Expires=300")).status_code == 403
    time.sleep(3.5)
    assert httpx.get(url).status_code in (400, 403)  # rclone, and everybody else


def test_refusals_and_cuts_and_slowness_are_borne(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every third request is a 503, and six connections each way are cut within their first 3 MB."""
    sha256 = write_random(tmp_path / "large", LARGE)
    refused = s3.refused
    with cutting(s3.port, cuts=6, at_most=3 << 20) as (endpoint, proxy), s3.refusing(every=3):
        storage = Storage(f"s3://{BUCKET}/{request.node.name}", endpoint)
        storage.put(tmp_path / "large", "large")
        assert proxy.cuts == 0
        proxy.cuts = 6
        storage.fetch("large", tmp_path / "back", sha256)
        assert storage.record("none") is None
    assert sha256_file(tmp_path / "back") == sha256
    assert proxy.cuts == 0
    assert s3.refused > refused + 3
    with Proxy(s3.port) as slow:
        slow.delay_s = 0.3
        patient = Storage(f"s3://{BUCKET}/{request.node.name}", f"http://127.0.0.1:{slow.port}")
        patient.write("small", bytes(300_000))
        assert patient.read("small") == bytes(300_000)


@pytest.mark.parametrize("storage", ["moto"], indirect=True)  # asked directly
def test_a_transfer_ends_when_nobody_waits_for_it(s3: S3, storage: Storage, tmp_path: Path) -> None:
    write_random(tmp_path / "large", LARGE)

    def give_up() -> None:
        raise RuntimeError("nobody waits")

    with pytest.raises(RuntimeError, match="nobody waits"):
        storage.put(tmp_path / "large", "large", give_up)
    assert storage.files() == []
    assert s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_what_is_wrong_is_said(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KnownError, match="storage_refused"):
        Storage("s3://no-such-bucket/x", s3.endpoint).read("a")
    with Proxy(s3.port) as gone:
        gone.mode = "cut"
        begun = time.monotonic()
        with pytest.raises(KnownError, match="storage_unavailable") as raised:
            Storage(f"s3://{BUCKET}", f"http://127.0.0.1:{gone.port}").write("a", b"")
    assert raised.value.retryable
    assert time.monotonic() - begun < 120


def test_a_package_that_is_missing_is_named() -> None:
    code = """
import sys
sys.modules["s3fs"] = None
from app.jobs.settings import StoreSettings
from known_core.errors import KnownError
try:
    StoreSettings(storage_url="s3://bucket").storage().read("a")
except KnownError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "pip install 'known[s3]'" in done.stdout
