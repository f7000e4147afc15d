"""Events: pages, server-sent events, resuming."""

import json

import httpx

from known_core.client import Client
from known_core.stack import Stack


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
                      "packaging"]  # fmt: skip
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
