"""Logs and traces of the real stack: one request's ids in the API, the worker and the trainer, in JSON and in spans."""

import gzip
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended


@dataclass
class Receiver:
    """Takes what an OTLP exporter sends over HTTP (opentelemetry.io/docs/specs/otlp)."""

    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)  # the service, and the span

    def of(self, service: str, name: str) -> list[Span]:
        return [span for its, span in self.spans if its == service and span.name == name]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = {a.key: a.value.string_value for a in group.resource.attributes}["service.name"]
                    found.spans += [(service, span) for scope in group.scope_spans for span in scope.spans]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Ran:
    """One job that succeeded and one that failed, on a stack that logs JSON and sends traces; it has stopped."""

    folder: Path
    job_id: str
    failed_id: str
    request_id: str
    job_log: str

    def log(self, name: str) -> list[dict[str, Any]]:
        text = (self.folder / "logs" / f"{name}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


TRACE = "0af7651916cd43dd8448eb211c80319c"  # the caller's own trace, which the job joins


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs, receiver: Receiver) -> Ran:
    folder = tmp_path_factory.mktemp("observed")
    environment = {
        "KNOWN_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with Stack(folder, port=0, environment=SETTINGS | environment) as stack, Client(stack.url) as client:
        request = inputs.request(client, stack.url)
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = httpx.post(f"{stack.url}/v1/enhance", json=request, headers=headers, timeout=60)
        job_id = answer.json()["id"]
        assert ended(client, job_id)["status"] == "succeeded", client.logs(job_id)
        failed_id = client.enhance(
            request | {"forgetting": {"epochs_per_stage": 1000}, "limits": {"max_gpu_seconds": 1}}
        )["id"]
        assert ended(client, failed_id)["status"] == "failed"
        return Ran(folder, job_id, failed_id, answer.headers["x-request-id"], client.logs(job_id))


def test_every_line_is_json_with_the_ids_it_is_about(ran: Ran) -> None:
    made = [line for line in ran.log("api") if line["event"] == "audit" and line["request_id"] == ran.request_id]
    assert [(line["path"], line["object"], line["status"]) for line in made] == [("/v1/enhance", ran.job_id, 202)]
    assert {"timestamp", "level", "logger"} <= made[0].keys()
    begun = [line for line in ran.log("worker") if line["event"] == "attempt 1" and line.get("job_id") == ran.job_id]
    assert [line["request_id"] for line in begun] == [ran.request_id]
    trainer = [json.loads(line) for line in ran.job_log.splitlines()]
    assert trainer[0] == {"event": "attempt 1", "job_id": ran.job_id, "request_id": ran.request_id}
    isolation = next(line for line in trainer if line["event"].startswith("isolation"))
    assert (isolation["job_id"], isolation["request_id"]) == (ran.job_id, ran.request_id)
    banner = 40  # lines of Celery's and Valkey's own
    for name in ("api", "worker"):
        text = (ran.folder / "logs" / f"{name}.log").read_text().splitlines()
        assert len([line for line in text if not line.startswith("{")]) < banner


def test_a_job_s_spans_are_of_its_request_s_trace(ran: Ran, receiver: Receiver) -> None:
    request = next(span for span in receiver.of("known-api", "POST /v1/enhance") if span.trace_id.hex() == TRACE)
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    attempt = next(span for span in receiver.of("known-worker", "attempt") if span.trace_id.hex() == TRACE)
    assert attempt.parent_span_id == request.span_id
    assert {a.key: a.value.string_value or a.value.int_value for a in attempt.attributes} == {
        "known.job_id": ran.job_id, "known.attempt": 1
    }  # fmt: skip
    trainer = next(span for span in receiver.of("known-worker", "trainer") if span.trace_id.hex() == TRACE)
    assert trainer.parent_span_id == attempt.span_id
    phases = [span for _, span in receiver.spans if span.parent_span_id == trainer.span_id]
    phases.sort(key=lambda span: span.start_time_unix_nano)
    names = [span.name for span in phases]
    assert [name for place, name in enumerate(names) if name != names[place - 1] or place == 0] == [
        "downloading", "evaluating_before", "forgetting", "nowcasting", "calibrating", "evaluating_after", "charting",
        "packaging",
    ]  # fmt: skip
    for before, after in itertools.pairwise(phases):
        assert before.start_time_unix_nano < before.end_time_unix_nano <= after.start_time_unix_nano
    assert attempt.status.code != Status.STATUS_CODE_ERROR


def test_an_attempt_that_failed_says_its_code_and_no_more(ran: Ran, receiver: Receiver) -> None:
    attempts = [span for span in receiver.of("known-worker", "attempt")
                if any(a.value.string_value == ran.failed_id for a in span.attributes)]  # fmt: skip
    assert [(span.status.code, span.status.message) for span in attempts] == [
        (Status.STATUS_CODE_ERROR, "limit_reached")
    ]


def test_probes_and_scrapes_are_not_traced(ran: Ran, receiver: Receiver) -> None:
    assert not [span.name for _, span in receiver.spans if "readyz" in span.name or "healthz" in span.name]


def test_where_traces_are_not_configured_nothing_of_them_is_imported() -> None:
    """But for what redis-py imports by itself where it is installed."""
    code = """
import sys
from known_core.traces import Phases, flush, mark_failed, span, start_tracing, traceparent
assert start_tracing('x') is None and traceparent() is None
with span('a'):
    mark_failed('b'); Phases().enter('c'); flush()
import app.main, worker.supervisor
print([name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'opentelemetry.instrumentation'))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = ("import sys; sys.modules['opentelemetry.sdk'] = None\n"
            "from known_core.logs import configure_logs; configure_logs()\n"
            "from known_core.traces import start_tracing; assert start_tracing('x') is None")  # fmt: skip
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'known[otel]'" in done.stderr


def test_for_people_lines_are_lines(tmp_path: Path) -> None:
    code = """
import logging
from known_core.logs import about, configure_logs, fields
configure_logs()
with about(job_id='job_1', request_id=None):
    logging.getLogger('x').warning('hot %d', 7, extra=fields({'a': 1}))
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger('x').exception('cold')
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    first = said.splitlines()[0]
    assert "[warning" in first
    assert "hot 7" in first
    assert "job_id=job_1" in first
    assert "a=1" in first
    assert "request_id" not in first
    assert "ZeroDivisionError" in said
