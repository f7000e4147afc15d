"""Versions of records: older ones are brought forward, newer ones are refused and left as they are."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.jobs.migrations import EVENT_STEPS, JOB_STEPS
from app.jobs.repository import JobRepository, connect
from app.uploads.record import STEPS
from app.uploads.repository import UploadRepository
from known_core.client import Client
from known_core.client.errors import RecordTooNew as TooNewAnswer
from known_core.errors import KnownError
from known_core.files import read_json, write_json
from known_core.manifest import verify_manifest, write_manifest
from known_core.schema import RecordTooNew, forward, newest
from known_core.stack import Stack
from known_core.stages import Stages
from tests.chaos.scene import until
from tests.conftest import SETTINGS, Inputs, ended
from tests.deploy.containers import ROOT


def seconds_to_ms(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**record, "ms": record["seconds"] * 1000}


def ms_to_us(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**record, "us": record["ms"] * 1000}


def test_a_record_is_brought_forward_from_its_own_version() -> None:
    steps = (seconds_to_ms, ms_to_us)
    assert forward({"seconds": 2}, steps, "clock")["us"] == 2_000_000
    assert forward({"schema": "2", "ms": 3}, steps, "clock")["us"] == 3000
    assert forward({"schema": 3, "us": 4}, steps, "clock") == {"schema": 3, "us": 4}
    with pytest.raises(RecordTooNew, match="the clock has the schema version 4, this process knows versions up to 3"):
        forward({"schema": 4}, steps, "clock")


def test_what_the_script_writes_is_the_newest_version() -> None:
    script = (ROOT / "app" / "jobs" / "states.lua").read_text()
    assert re.findall(r"^local EVENT_SCHEMA = (\d+)", script, flags=re.MULTILINE) == [str(newest(EVENT_STEPS))]


def test_a_newer_job_is_refused_by_the_api_and_left_by_the_worker(tmp_path: Path, inputs: Inputs) -> None:
    with Stack(tmp_path, port=0, environment=SETTINGS, workers=0) as stack, Client(stack.url) as client:
        store: Any = connect(stack.store_url)
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        record = f"known:job:{job_id}"
        assert store.hget(record, "schema") == str(newest(JOB_STEPS))
        written = store.xrange(f"{record}:events")
        assert {event["schema"] for _, event in written} == {str(newest(EVENT_STEPS))}
        store.hset(record, "schema", 99)
        before = store.hgetall(record)
        for ask in (lambda: client.job(job_id), lambda: list(client.jobs())):
            with pytest.raises(TooNewAnswer, match="schema version 99") as refused:
                ask()
            assert (refused.value.status, refused.value.retryable) == (503, True)
        with pytest.raises(RecordTooNew):
            JobRepository(store).claim(job_id, "an old worker", 10, 3)
        assert store.hgetall(record) == before
        stack.add_worker("worker")
        log = stack.logs / "worker.log"
        until(lambda: "schema version 99" in log.read_text(), "the worker does not say that it leaves the job", 120)
        assert store.hgetall(record)["attempts"] == "0"
        store.hset(record, "schema", newest(JOB_STEPS))  # as a newer worker reads it
        store.zadd("known:jobs:open", {job_id: 0})
        assert ended(client, job_id)["attempts"] == 1


def test_a_newer_upload_is_refused(tmp_path: Path) -> None:
    uploads = UploadRepository(tmp_path)
    upload = uploads.create("team", filename="a.bin", length=3)
    said = tmp_path / "team" / upload.id / "incoming.json"
    assert read_json(said)["schema"] == newest(STEPS)
    write_json(said, {**read_json(said), "schema": 2})
    with pytest.raises(KnownError, match=f"the upload {upload.id} has the schema version 2"):
        uploads.get("team", upload.id)
    without = {name: value for name, value in read_json(said).items() if name != "schema"}
    write_json(said, without)
    assert uploads.get("team", upload.id).filename == "a.bin"


def test_a_newer_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    write_manifest(tmp_path, {})
    said = read_json(tmp_path / "manifest.json")
    assert said["schema"] == 1
    write_json(tmp_path / "manifest.json", {**said, "schema": 2})
    with pytest.raises(RecordTooNew):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_stage_of_another_version_is_made_again(tmp_path: Path, version: int | None) -> None:
    """One that says none is of the first."""
    made: list[Path] = []
    stages = Stages(tmp_path)
    folder = stages.run("a", {"x": 1}, made.append)
    said = json.loads((folder / "stage.json").read_text())
    assert said.pop("schema") == 1
    write_json(folder / "stage.json", said if version is None else {**said, "schema": version})
    assert (stages.find("a", {"x": 1}) is None) == (version == 2)
    assert stages.run("a", {"x": 1}, made.append) == folder
    assert len(made) == (2 if version == 2 else 1)
