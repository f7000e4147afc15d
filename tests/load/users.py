"""What clients do while they wait for their jobs, as Locust users. ``python -m tests.load`` runs them."""

import http.client
import json
import os
import random
import time
from typing import Any
from urllib.parse import urlsplit

from locust import FastHttpUser, User, between, task

_JOBS = json.loads(os.environ["LOAD_JOBS"])  # ids: {"running": [...], "ended": [...]}


class Polls(FastHttpUser):
    """Asks every few seconds how its job is doing, as a script in a loop does."""

    weight = 5
    wait_time = between(1, 3)

    def on_start(self) -> None:
        self.job = random.choice(_JOBS["running"])
        self.etag = ""

    @task(9)
    def look(self) -> None:
        with self.client.get(
            f"/v1/jobs/{self.job}", name="job", headers={"If-None-Match": self.etag}, catch_response=True
        ) as answer:
            if answer.status_code in (200, 304):
                answer.success()
                self.etag = answer.headers["ETag"]

    @task(1)
    def read_events(self) -> None:
        self.client.get(f"/v1/jobs/{self.job}/events?limit=100", name="events page")


class Lists(FastHttpUser):
    """A dashboard: pages of jobs, of all states or of one, from the newest or from anywhere."""

    weight = 1
    wait_time = between(1, 3)

    @task
    def page(self) -> None:
        status = random.choice(["", "&status=failed", "&status=canceled", "&status=running"])
        after = random.choice(["", f"&after={random.choice(_JOBS['ended'])}"])
        self.client.get(f"/v1/jobs?limit=20{status}{after}", name="list")


class Streams(User):
    """Follows a job by server-sent events, and measures how late each event comes."""

    weight = 4
    wait_time = between(0, 1)

    @task
    def follow(self) -> None:
        assert isinstance(self.host, str)
        client = http.client.HTTPConnection(
            urlsplit(self.host).netloc, timeout=60
        )  # Locust makes its sockets cooperative
        begun = time.time()
        until = begun + random.uniform(20, 60)  # then the page is closed, and opened again
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(int(begun * 1000))}
        try:
            client.request("GET", f"/v1/jobs/{random.choice(_JOBS['running'])}/events", headers=headers)
            answer = client.getresponse()
            self._seen("stream opens", begun, None if answer.status == 200 else RuntimeError(answer.status))
            while time.time() < until:
                line = answer.readline()
                if line.startswith(b"id: "):
                    self._seen("event arrives", int(line[4:].split(b"-")[0]) / 1000)
        except Exception as error:
            self._seen("stream breaks", begun, error)
        finally:
            client.close()

    def _seen(self, name: str, since: float, error: Any = None) -> None:
        self.environment.events.request.fire(
            request_type="SSE", name=name, response_time=1000 * (time.time() - since), response_length=0,
            exception=error, context={},
        )  # fmt: skip
