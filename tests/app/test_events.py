"""Events: pages, server-sent events, resuming."""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from app.jobs.record import new_job_id
from app.jobs.repository import JobRepository, connect
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs


def _sse(text: str) -> list[dict[str, str]]:
    """The events of a stream, field by field (WHATWG HTML, 9.2.6)."""
    blocks = [block for block in text.split("\n\n") if block.strip() and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_events_tell_the_whole_job_in_order(client: Client, finished_job: str) -> None:
    events = list(client.events(finished_job))
    statuses = [event["status"] for event in events if event["type"] == "status"]
    assert statuses == ["queued", "validating", "running", "succeeded"]
    phases = [f"{event['phase']} {event['detail']}".strip() for event in events if event["type"] == "phase"]
    stages = [f"forgetting {stage} of 4" for stage in (1, 2, 3, 4)]
    assert phases == ["downloading", "evaluating_before", *stages, "nowcasting", "calibrating", "evaluating_after",
                      "charting", "packaging"]  # fmt: skip
    for event in events:
        if event["type"] == "progress":
            assert 0 < event["step"] <= event["total"]
            assert event["eta_seconds"] >= 0


def test_pages_go_on_after_an_id(stack: Stack, finished_job: str) -> None:
    url = f"{stack.url}/v1/jobs/{finished_job}/events"
    whole = httpx.get(url, params={"limit": 1000}).json()
    assert whole["ended"]
    first = httpx.get(url, params={"limit": 3}).json()
    assert not first["ended"]
    rest = httpx.get(url, params={"limit": 1000, "after": first["last_id"]}).json()
    assert first["data"] + rest["data"] == whole["data"]
    nothing = httpx.get(url, params={"after": whole["last_id"], "wait": 30}, timeout=60)
    assert nothing.json() == {"object": "list", "data": [], "last_id": None, "ended": True}
    assert nothing.elapsed.total_seconds() < 5


def test_a_stream_ends_with_the_job_and_resumes_at_last_event_id(stack: Stack, finished_job: str) -> None:
    url = f"{stack.url}/v1/jobs/{finished_job}/events"
    page = httpx.get(url, params={"limit": 1000}).json()["data"]
    accept = {"Accept": "text/event-stream"}
    answer = httpx.get(url, headers=accept)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _sse(answer.text)
    assert [(event["id"], event["event"], json.loads(event["data"])) for event in events] == [
        (event["id"], event["type"], event["data"]) for event in page
    ]
    resumed = _sse(httpx.get(url, headers={**accept, "Last-Event-ID": events[4]["id"]}).text)
    assert [event["id"] for event in resumed] == [event["id"] for event in events[5:]]


def test_a_bad_event_id_is_refused(stack: Stack, finished_job: str) -> None:
    answer = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/events", params={"after": "yesterday"})
    assert answer.status_code == 422
    assert "yesterday" in answer.json()["detail"]


def _stream(url: str, after: str, at_most: int) -> tuple[list[str], bool]:
    """Ids of a stream's events; the connection is cut after so many. Returns: them, and whether the stream ended."""
    ids: list[str] = []
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream", "Last-Event-ID": after}, timeout=60) as lines:
        for line in lines.iter_lines():
            if line.startswith("id: "):
                ids.append(line.removeprefix("id: "))
            if line == "" and len(ids) >= at_most:
                return ids, False
    return ids, True


def test_streams_that_break_at_random_give_every_event_once(stack: Stack, start_job: Callable[..., str]) -> None:
    url = f"{stack.url}/v1/jobs/{start_job()}/events"

    def follow(seed: int) -> list[str]:
        cut, ids, ended = random.Random(seed), ["0"], False
        while not ended:
            more, ended = _stream(url, ids[-1], cut.randint(1, 12))
            ids += more
        return ids[1:]

    with ThreadPoolExecutor(8) as pool:
        followed = list(pool.map(follow, range(8)))
    whole = [event["id"] for event in httpx.get(url, params={"limit": 1000}).json()["data"]]
    assert len(whole) > 20
    assert all(ids == whole for ids in followed)


def test_a_lost_subscription_loses_no_event(stack: Stack, start_job: Callable[..., str]) -> None:
    """The API hears of changes over one connection to the store; it is cut again and again while a job runs."""
    url, store = f"{stack.url}/v1/jobs/{start_job()}/events", connect(stack.store_url)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(_stream, url, "0", 10_000)
        cuts = 0
        while not following.done():
            cuts += int(store.client_kill_filter(_type="pubsub"))
            time.sleep(0.3)
    whole = [event["id"] for event in httpx.get(url, params={"limit": 1000}).json()["data"]]
    assert cuts > 3
    assert following.result() == (whole, True)


def test_events_that_are_no_longer_kept_leave_a_gap(stack: Stack) -> None:
    """A long job's first events are dropped; whoever asks for them is told how many, and goes on after them."""
    store, job_id = connect(stack.store_url), new_job_id()
    repository = JobRepository(store)
    repository.create(job_id, "local", {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}})
    repository.cancel(job_id)
    url = f"{stack.url}/v1/jobs/{job_id}/events"
    before = httpx.get(url).json()["data"]
    assert [event["data"]["status"] for event in before] == ["queued", "canceled"]
    for step in range(20):
        store.xadd(f"known:job:{job_id}:events", {"data": json.dumps({"type": "progress", "step": step})})
    store.xtrim(f"known:job:{job_id}:events", maxlen=5, approximate=False)
    for after in ("0", before[0]["id"]):
        gap, *kept = httpx.get(url, params={"after": after}).json()["data"]
        assert gap["data"] == {"type": "gap", "dropped": 17}
        assert [event["data"]["step"] for event in kept] == [15, 16, 17, 18, 19]
        resumed = httpx.get(url, params={"after": gap["id"]}).json()["data"]
        assert resumed == kept
        streamed = _sse(httpx.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": after}).text)
        assert [event["event"] for event in streamed] == ["gap", *["progress"] * 5]
    assert httpx.get(url, params={"after": kept[2]["id"]}).json()["data"] == kept[3:]
    assert httpx.get(url, params={"limit": 3}).json()["data"] == [gap, *kept[:2]]


def test_an_api_that_ends_answers_whoever_waits(tmp_path: Path, inputs: Inputs) -> None:
    """At once, with what there is: an answer that its end cuts off would be an error to a client."""
    with Stack(tmp_path, port=0, environment=SETTINGS, workers=0) as stack, Client(stack.url) as client:
        job_id = str(client.enhance(inputs.request(client, stack.url))["id"])
        paths = [f"/v1/jobs/{job_id}?wait=50", f"/v1/jobs/{job_id}/events?wait=50&after=9999999999999-0"]
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(httpx.get, stack.url + path, timeout=60) for path in paths]
            time.sleep(2)
            assert not any(answer.done() for answer in waiting)
            begun = time.monotonic()
            stack.stop_one("api")
            answers = [answer.result() for answer in waiting]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["status"] == "queued"
        assert answers[1].json()["data"] == []
        assert time.monotonic() - begun < 30
