"""Downloads: checksums, ranges, ETags, and no way out of the folder."""

import hashlib
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from safetensors.torch import load_file

from app.artifacts.files import file_response
from app.artifacts.signing import UrlSigner
from app.jobs.secrets import SecretKeys
from app.jobs.settings import StoreSettings
from known_core.client import Client
from known_core.errors import KnownError
from known_core.manifest import verify_manifest
from known_core.stack import Stack


def test_the_download_verifies_and_loads(client: Client, finished_job: str, tmp_path: Path) -> None:
    count = client.download(finished_job, tmp_path / "all")
    assert count == len(client.files(finished_job))
    before, after = (load_file(tmp_path / "all" / name / "model.safetensors") for name in ("unchanged", "x2"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    (tmp_path / "all" / "x2" / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(KnownError, match=r"x2/model\.safetensors has another sha256"):
        verify_manifest(tmp_path / "all")


def test_one_candidate_can_be_fetched_alone(client: Client, finished_job: str, tmp_path: Path) -> None:
    client.download(finished_job, tmp_path / "one", only="x4")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "x4",
        "report.json",
        "report.md",
        "report.html",
        "manifest.json",
    }


def test_ranges_and_etags(stack: Stack, client: Client, finished_job: str) -> None:
    entry = client.files(finished_job)[-1]
    whole = httpx.get(stack.url + entry["url"])
    assert hashlib.sha256(whole.content).hexdigest() == entry["sha256"]
    assert whole.headers["etag"] == f'"{entry["sha256"]}"'
    part = httpx.get(stack.url + entry["url"], headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole.content[100:200]
    resumed = httpx.get(stack.url + entry["url"], headers={"Range": "bytes=100-", "If-Range": f'"{entry["sha256"]}"'})
    assert resumed.status_code == 206
    assert resumed.content == whole.content[100:]
    assert httpx.get(stack.url + entry["url"], headers={"Range": "bytes=99999999-"}).status_code == 416


@pytest.mark.parametrize(
    "path", ["../spec.json", "%2e%2e/spec.json", "x2/../../spec.json", "/etc/passwd", "x2", "", "x2/none.safetensors"]
)
def test_only_files_of_the_manifest_are_served(stack: Stack, finished_job: str, path: str) -> None:
    url = httpx.URL(f"{stack.url}/v1/jobs/{finished_job}/artifacts/").copy_with(
        raw_path=f"/v1/jobs/{finished_job}/artifacts/{path}".encode()
    )
    assert httpx.get(url).status_code == 404


def files_of(client: Client, job_id: str) -> list[dict[str, Any]]:
    return [file.raw for file in client.files(job_id)]


def test_a_signed_address_needs_no_key_and_opens_one_file(client: Client, stack: Stack, finished_job: str) -> None:
    for entry in files_of(client, finished_job):
        answer = httpx.get(stack.url + entry["download_url"])
        assert hashlib.sha256(answer.content).hexdigest() == entry["sha256"]
        assert httpx.head(stack.url + entry["download_url"]).headers["content-length"] == str(entry["bytes"])
        assert datetime.fromisoformat(entry["expires_at"]).timestamp() > time.time() + 3000
        assert httpx.delete(stack.url + entry["download_url"]).status_code == 405


def test_a_signed_address_that_was_changed_opens_nothing(client: Client, stack: Stack, finished_job: str) -> None:
    """Every bit of the signature, every other part of the address, and the path of another file."""
    first, other = files_of(client, finished_job)[:2]
    path, _, query = first["download_url"].partition("?")
    values = dict(parse_qsl(query))
    signature = bytes.fromhex(values["signature"])
    changed = []
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append((path, {**values, "signature": flipped.hex()}))
    changed += [
        (other["url"], values),
        (path.replace("/artifacts/", "/artifacts//"), values),
        (path, {**values, "tenant": "other"}),
        (path, {**values, "tenant": ""}),
        (path, {**values, "expires": str(int(values["expires"]) + 1)}),
        (path, {**values, "key": "00000000"}),
        (path, {**values, "signature": ""}),
        (path, {**values, "signature": values["signature"].upper()}),
        (path, {**values, "signature": "é" * 64}),
        (path, {"signature": values["signature"]}),
    ]
    with httpx.Client(base_url=stack.url) as http:
        for place, parameters in changed:
            answer = http.get(place, params=parameters)
            assert (answer.status_code, answer.json()["code"]) == (403, "url_invalid"), (place, parameters)


def test_a_signed_address_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = UrlSigner(SecretKeys(StoreSettings(data_dir=tmp_path)), 60)
    url, expires = signer.sign("local", "/a b")
    values = dict(parse_qsl(url.partition("?")[2]))
    given = ("/a b", "local", expires, values["key"], values["signature"])
    signer.check(*given)
    monkeypatch.setattr(time, "time", lambda: expires + 1)
    with pytest.raises(KnownError, match="url_expired"):
        signer.check(*given)


def test_a_new_secret_key_leaves_what_the_old_one_signed(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()

    def signer(keys: str) -> UrlSigner:
        return UrlSigner(SecretKeys(StoreSettings(data_dir=tmp_path, secret_key=SecretStr(keys))), 60)

    def check(keys: str, url: str, expires: int) -> None:
        values = dict(parse_qsl(url.partition("?")[2]))
        signer(keys).check("/a", "local", expires, values["key"], values["signature"])

    before, after = signer(old).sign("local", "/a"), signer(f"{new},{old}").sign("local", "/a")
    check(f"{new},{old}", *before)
    check(new, *after)
    for keys, signed in ((new, before), (old, after)):
        with pytest.raises(KnownError, match="url_invalid"):
            check(keys, *signed)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_gives_those_bytes(client: Client, stack: Stack, finished_job: str, data: st.DataObject) -> None:
    entry = max(files_of(client, finished_job), key=lambda file: int(file["bytes"]))
    body, size = httpx.get(stack.url + entry["url"]).content, int(entry["bytes"])
    numbers = st.integers(0, size + 10)
    first, last = data.draw(st.none() | numbers), data.draw(st.none() | numbers)
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    answer = httpx.get(stack.url + entry["url"], headers={"Range": header})
    if (first is None and last is None) or (first is not None and last is not None and first > last):
        assert (answer.status_code, answer.content) == (200, body)
    elif (first is None and last == 0) or (first is not None and first >= size):
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
        assert answer.json()["code"] == "range_not_satisfiable"
    else:
        start = max(size - (last or 0), 0) if first is None else first
        end = size if first is None or last is None else min(last + 1, size)
        assert (answer.status_code, answer.content) == (206, body[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"


@pytest.mark.parametrize("header", ["items=0-5", "bytes=a-b", "bytes=1_0-2", "bytes", "bytes=+1-5", "bytes=0-1,"])
def test_a_range_that_is_none_is_ignored(client: Client, stack: Stack, finished_job: str, header: str) -> None:
    entry = files_of(client, finished_job)[0]
    answer = httpx.get(stack.url + entry["url"], headers={"Range": header})
    assert (answer.status_code, len(answer.content)) == (200, entry["bytes"])


def test_several_ranges_and_far_too_many(client: Client, stack: Stack, finished_job: str) -> None:
    entry = max(files_of(client, finished_job), key=lambda file: int(file["bytes"]))
    two = httpx.get(stack.url + entry["url"], headers={"Range": "bytes=0-9,20-29"})
    assert two.status_code == 206
    assert two.headers["content-type"].startswith("multipart/byteranges")
    many = ",".join(f"{2 * i}-{2 * i}" for i in range(2000))
    answer = httpx.get(stack.url + entry["url"], headers={"Range": f"bytes={many}"})
    assert (answer.status_code, len(answer.content)) == (200, entry["bytes"])


def test_a_client_that_has_the_file_is_told_so(client: Client, stack: Stack, finished_job: str) -> None:
    entry = files_of(client, finished_job)[0]
    url, tag = stack.url + entry["url"], f'"{entry["sha256"]}"'
    for given_tag in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = httpx.get(url, headers={"If-None-Match": given_tag})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    changed = httpx.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (changed.status_code, len(changed.content)) == (200, entry["bytes"])
    whole = httpx.get(url)
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert whole.headers["content-disposition"] == f'attachment; filename="{Path(entry["path"]).name}"'


def test_names_cannot_break_out_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / 'a";\r\nX-Evil: 1 é.bin'
    path.write_bytes(b"x")
    answer = file_response(path, None, None, None, None)
    assert (
        answer.headers["content-disposition"] == "attachment; filename*=utf-8''a%22%3B%0D%0AX-Evil%3A%201%20%C3%A9.bin"
    )
