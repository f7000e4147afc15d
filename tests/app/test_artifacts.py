"""Downloads: checksums, ranges, ETags, and no way out of the folder."""

import hashlib
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

from known_core.client import Client
from known_core.errors import KnownError
from known_core.manifest import verify_manifest
from known_core.stack import Stack


def test_the_download_verifies_and_loads(client: Client, finished_job: str, tmp_path: Path) -> None:
    count = client.download(finished_job, tmp_path / "all")
    assert count == len(client._json("GET", f"/v1/jobs/{finished_job}/artifacts")["data"])
    before, after = (load_file(tmp_path / "all" / name / "model.safetensors") for name in ("unchanged", "x2"))
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    (tmp_path / "all" / "x2" / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(KnownError, match=r"x2/model\.safetensors has another sha256"):
        verify_manifest(tmp_path / "all")


def test_one_candidate_can_be_fetched_alone(client: Client, finished_job: str, tmp_path: Path) -> None:
    client.download(finished_job, tmp_path / "one", only="x4")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"x4", "report.json", "report.md", "manifest.json"}


def test_ranges_and_etags(stack: Stack, client: Client, finished_job: str) -> None:
    entry = client._json("GET", f"/v1/jobs/{finished_job}/artifacts")["data"][-1]
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
