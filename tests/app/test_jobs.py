"""Starting, listing, showing and canceling jobs over real HTTP."""

import time
from collections.abc import Callable

import httpx
import pytest

from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.conftest import Inputs, ended


def test_a_job_goes_from_request_to_result(client: Client, finished_job: str) -> None:
    job = client.job(finished_job)
    assert job["status"] == "succeeded"
    assert job["attempts"] == 1
    assert job["resolved"]["architecture"] == "small-cnn"
    assert sum(job["resolved"]["dataset"]["train"].values()) == 300
    assert job["result"]["selected"] in ("unchanged", "x2", "x4", "x8")
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert set(client.report(finished_job)["transfer"]) == {"unchanged", "x2", "x4", "x8"}


def test_enhance_answers_202_with_the_jobs_address(stack: Stack, client: Client, inputs: Inputs) -> None:
    answer = httpx.post(f"{stack.url}/enhance", json=inputs.request(client, stack.url, metadata={"k": "v"}), timeout=60)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert job["metadata"] == {"k": "v"}
    assert client.cancel(job["id"])["status"] in ("canceled", "canceling")
    assert ended(client, job["id"])["status"] == "canceled"


def test_jobs_are_listed_newest_first_in_pages(client: Client, start_job: Callable[..., str]) -> None:
    made = [start_job() for _ in range(3)]
    for job_id in made:
        client.cancel(job_id)
    first = client.job_page(limit=2)
    assert [job.id for job in first.data] == [made[2], made[1]]
    assert first.has_more
    assert client.job_page(limit=1, after=first.last_id).data[0].id == made[0]
    for job_id in made:
        ended(client, job_id)
    canceled = list(client.jobs(status="canceled"))
    assert {job.status for job in canceled} == {"canceled"}
    assert set(made) <= {job.id for job in canceled}


def test_canceling_a_running_job_ends_its_process(client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job(forgetting={"epochs_per_stage": 1000})
    for event in client.events(job_id):
        if event.get("phase") == "forgetting":
            break
    begun = time.monotonic()
    assert client.cancel(job_id)["status"] == "canceling"
    assert ended(client, job_id)["status"] == "canceled"
    assert time.monotonic() - begun < 15
    with pytest.raises(KnownError) as caught:
        client.cancel(job_id)
    assert caught.value.code == "job_ended"


@pytest.mark.slow
def test_a_long_poll_answers_when_the_job_ends_or_changes(
    stack: Stack, client: Client, finished_job: str, start_job: Callable[..., str]
) -> None:
    url = f"{stack.url}/v1/jobs/{finished_job}"
    answer = httpx.get(url, params={"wait": 30}, timeout=60)
    assert answer.elapsed.total_seconds() < 5
    etag = answer.headers["etag"]
    unchanged = httpx.get(url, params={"wait": 1}, headers={"If-None-Match": etag}, timeout=60)
    assert unchanged.status_code == 304
    assert unchanged.elapsed.total_seconds() >= 0.9

    job_id = start_job()
    url = f"{stack.url}/v1/jobs/{job_id}"
    etag = httpx.get(url).headers["etag"]
    changed = httpx.get(url, params={"wait": 30}, headers={"If-None-Match": etag}, timeout=60)
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    client.cancel(job_id)
    assert httpx.get(url, params={"wait": 30}, timeout=60).json()["status"] == "canceled"


def test_unknown_jobs_are_404(stack: Stack) -> None:
    unknown = f"{stack.url}/v1/jobs/job_{'0' * 24}"
    for path in ("", "/events", "/logs", "/report", "/manifest", "/artifacts", "/artifacts/x2/model.safetensors"):
        answer = httpx.get(unknown + path)
        assert answer.status_code == 404
        assert answer.json()["code"] == "job_not_found"
    assert httpx.post(f"{unknown}/cancel").status_code == 404
    assert httpx.get(unknown + "/events", headers={"Accept": "text/event-stream"}).status_code == 404


def test_results_before_the_end_are_409(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job()
    for path in ("report", "manifest", "artifacts", "artifacts/report.md"):
        answer = httpx.get(f"{stack.url}/v1/jobs/{job_id}/{path}")
        assert answer.status_code == 409
        assert answer.json()["code"] == "result_not_ready"
    client.cancel(job_id)
    ended(client, job_id)


def test_logs_are_what_the_process_printed(client: Client, finished_job: str) -> None:
    assert client.logs(finished_job).startswith("attempt 1\n")
    assert client.logs(finished_job, tail=1).count("\n") <= 1


def test_a_deleted_job_leaves_nothing(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job()
    with pytest.raises(KnownError, match="job_busy"):
        client.delete(job_id)
    client.cancel(job_id)
    ended(client, job_id)
    folder = stack.logs.parent / "jobs" / job_id
    client.delete(job_id)
    assert not folder.exists()
    for ask in (client.job, client.logs, client.report, client.delete):
        with pytest.raises(KnownError, match="job_not_found"):
            ask(job_id)
    assert job_id not in [job.id for job in client.jobs()]
