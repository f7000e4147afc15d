"""Today's code on what earlier releases left behind: it reads everything, goes on with their jobs, and deletes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from known_core.client import Client
from known_core.manifest import verify_manifest
from known_core.stack import Stack
from tests.chaos.scene import until
from tests.conftest import ended
from tests.upgrade.release import RELEASES, upgraded


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Any]]:
    with upgraded(request.param, tmp_path_factory.mktemp("old")) as found:
        yield found


@pytest.fixture
def service(old: tuple[Stack, Any]) -> Iterator[Client]:
    with Client(old[0].url) as connected:
        yield connected


def test_all_that_there_was_is_read(old: tuple[Stack, Any], service: Client, tmp_path: Path) -> None:
    stack, facts = old
    statuses = {name: service.job(facts[name])["status"] for name in ("succeeded", "paused", "queued")}
    assert statuses == {name: name for name in statuses}
    assert {job.id for job in service.jobs()} == {facts[name] for name in statuses}
    assert service.job(facts["succeeded"])["metadata"] == {"made": "by the release before"}
    for name, events in facts["events"].items():
        assert [event.data for event in service.events(facts[name], follow=False)] == events
    assert service.manifest(facts["succeeded"])["content_sha256"] == facts["content_sha256"]
    assert service.report(facts["succeeded"])["selected"]
    service.download(facts["succeeded"], tmp_path)
    (manifest,) = tmp_path.rglob("manifest.json")
    assert verify_manifest(manifest.parent) >= 5
    assert "attempt 1" in service.logs(facts["succeeded"])
    assert {"inputs", "fan-0"} <= {stage["stage"] for stage in service.checkpoints(facts["paused"])}
    for upload_id in facts["uploads"]:
        answer = httpx.get(f"{stack.url}/v1/uploads/{upload_id}")
        assert (answer.status_code, answer.json()["status"]) == (200, "complete")
    for page in ("/", f"/jobs/{facts['succeeded']}", f"/v1/jobs/{facts['succeeded']}/report?format=html"):
        assert httpx.get(stack.url + page).status_code == 200


@pytest.mark.slow
def test_its_jobs_go_on_and_are_deleted(old: tuple[Stack, Any], service: Client) -> None:
    """In the order in which they were left: what waited runs, what was paused goes on after its finished stages."""
    stack, facts = old
    folder = Path(str(stack.logs.parent)) / "jobs" / facts["paused"] / "run" / "work"
    done = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*/stage.json")}
    assert done
    stack.add_worker("worker")
    service.resume(facts["paused"])
    for name in ("queued", "paused"):
        job = ended(service, facts[name])
        assert job["status"] == "succeeded", service.logs(facts[name])
        assert job["attempts"] == 1
    assert {path: path.stat().st_mtime_ns for path in done} == done
    service.republish(facts["succeeded"], {"repo_id": "someone/somewhere"}, token="hf_none")
    until(lambda: "publish_error" in (service.job(facts["succeeded"])["result"] or {}), "it is not published", 120)
    assert service.job(facts["succeeded"])["result"]["publish_error"]["code"] in ("hub_unreachable", "hub_offline")
    for name in ("succeeded", "paused", "queued"):
        service.delete(facts[name])
    assert list(service.jobs()) == []
    assert list((stack.logs.parent / "jobs").glob("job_*")) == []
