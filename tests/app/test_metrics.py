"""The metrics of the real stack after a real job, as Prometheus parses them."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.jobs.record import JobStatus
from app.jobs.repository import JobRepository, connect
from app.metrics.collector import StoreCollector
from app.metrics.repository import MetricsRepository
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended
from worker.machine import describe_load

DEPLOY = Path(__file__).parents[2] / "deploy"
TOKEN = "a-token-for-prometheus"


def samples(stack: Stack, token: str | None = None) -> list[Sample]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.get(f"{stack.url}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels; fails where there is none."""
    chosen = [sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items()]
    assert chosen, (name, labels)
    return sum(chosen)


@pytest.fixture(scope="module")
def scraped(stack: Stack, inputs: Inputs, finished_job: str) -> list[Sample]:
    """After a job that succeeded and one that failed."""
    long = {"forgetting": {"epochs_per_stage": 1000}, "limits": {"max_gpu_seconds": 1}}
    with Client(stack.url) as client:
        failed = client.enhance(inputs.request(client, stack.url, **long))["id"]
        assert ended(client, failed)["status"] == "failed"
    return samples(stack)


def test_a_job_is_seen_in_every_figure_it_touches(scraped: list[Sample]) -> None:
    assert value(scraped, "known_store_up") == 1
    assert value(scraped, "known_jobs", status="succeeded") >= 1
    assert value(scraped, "known_jobs_ended_total", status="succeeded") >= 1
    assert value(scraped, "known_job_failures_total", code="limit_reached") >= 1
    assert value(scraped, "known_job_claims_total") >= 2
    assert value(scraped, "known_workers") == 1
    assert (
        value(scraped, "known_queue_workers", queue="cpu")
        == value(scraped, "known_queue_workers", queue="control")
        == 1
    )
    assert value(scraped, "known_queue_workers", queue="gpu") == 0
    assert value(scraped, "known_queue_wake_ups") == 0
    assert (
        0
        < value(scraped, "known_worker_memory_bytes", kind="used")
        < value(scraped, "known_worker_memory_bytes", kind="total")
    )
    for phase in ("downloading", "evaluating_before", "forgetting", "nowcasting", "calibrating", "packaging"):
        assert value(scraped, "known_phase_seconds_count", phase=phase) >= 1
        assert value(scraped, "known_phase_seconds_bucket", phase=phase, le="+Inf") >= 1
    assert value(scraped, "known_phase_seconds_sum", phase="evaluating_after") > 0
    assert value(scraped, "known_upload_bytes_total") > 1000
    assert value(scraped, "known_event_lag_seconds_count") > 0


def test_requests_are_counted_by_their_route_s_template(stack: Stack, scraped: list[Sample], finished_job: str) -> None:
    def count(**labels: str) -> float:
        name = "known_http_request_seconds_count"
        chosen = [sample for sample in samples(stack) if sample.name == name]
        return sum(sample.value for sample in chosen if labels.items() <= sample.labels.items())

    before = count(route="/v1/jobs/{job_id}", method="GET", status="200")
    httpx.get(f"{stack.url}/v1/jobs/{finished_job}")
    assert count(route="/v1/jobs/{job_id}", method="GET", status="200") == before + 1
    httpx.get(f"{stack.url}/v1/jobs/job_{'0' * 24}")
    assert count(route="/v1/jobs/{job_id}", status="404") >= 1
    httpx.get(f"{stack.url}/of/a/stranger")
    httpx.request("TRACE", f"{stack.url}/of/another")
    assert count(route="none", method="GET", status="404") >= 1
    assert count(route="none", method="other") >= 1
    assert not any(sample.labels["route"].startswith(("/of", "/v1/jobs/job_")) for sample in samples(stack)
                   if sample.name.startswith("known_http"))  # fmt: skip


def test_no_label_names_a_tenant_a_job_or_a_key(scraped: list[Sample], finished_job: str) -> None:
    labels = json.dumps([sample.labels for sample in scraped])
    assert finished_job not in labels
    assert not re.search(r"tenant|local|known_[0-9a-f]{12}", labels)


def _named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:known|process)_[a-z_]+\b", expression))


def _exposed(found: list[Sample]) -> set[str]:
    return {sample.name for sample in found}


GPU = {"known_gpu_memory_bytes", "known_gpu_utilization_ratio"}  # without one they have no samples
WEBHOOKS = {"known_webhook_attempts_total"}  # as without deliveries


def test_every_metric_of_the_dashboard_is_exposed(stack: Stack, scraped: list[Sample]) -> None:
    board = json.loads((DEPLOY / "grafana" / "known.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = set().union(*map(_named, expressions))
    assert len(named) > 12
    assert named - GPU - WEBHOOKS <= _exposed(scraped)
    declared = re.findall(r"^# TYPE (\S+)", httpx.get(f"{stack.url}/metrics").text, re.MULTILINE)
    assert named & (GPU | WEBHOOKS) <= set(declared)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_metric_of_the_alerts_is_exposed(scraped: list[Sample]) -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "known.rules.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert _named(rule["expr"]) - GPU - WEBHOOKS <= _exposed(scraped), rule["alert"]
        assert rule["annotations"]["summary"]


def test_a_machine_s_load_is_what_its_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of ours has a GPU: a program in the driver's place prints what NVIDIA documents."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho '0, NVIDIA H100 80GB HBM3, 1024, 81559, 57'\necho '1, NVIDIA A2, [N/A], 15356, [N/A]'\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = describe_load()
    assert found["gpus"] == [
        {"index": 0, "name": "NVIDIA H100 80GB HBM3", "used": 1 << 30, "total": 81559 << 20, "utilization": 0.57},
        {"index": 1, "name": "NVIDIA A2", "used": 0, "total": 15356 << 20, "utilization": 0.0},
    ]
    assert 0 < found["memory"]["used"] < found["memory"]["total"]


@pytest.fixture(scope="module")
def locked_with_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = SETTINGS | {"KNOWN_ACCESS": "keys", "KNOWN_METRICS_TOKEN": TOKEN}
    with Stack(tmp_path_factory.mktemp("scraped"), port=0, environment=environment, workers=0) as running:
        yield running


def test_in_keys_mode_the_token_opens_and_nothing_else(
    locked_with_token: Stack, locked: Stack, key_for: Callable[..., str]
) -> None:
    assert value(samples(locked_with_token, TOKEN), "known_store_up") == 1
    for stack, token in (
        (locked_with_token, None),
        (locked_with_token, TOKEN[:-1]),
        (locked, key_for("a", ("admin",))),
    ):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(f"{stack.url}/metrics", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "metrics_closed")


def test_in_open_mode_a_proxy_is_refused(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/metrics", headers={"X-Forwarded-For": "192.0.2.1"})
    assert answer.json()["code"] == "open_mode_is_local"


def test_a_queue_and_ten_thousand_jobs(locked_with_token: Stack) -> None:
    """What waits is seen, and how long; a scrape asks the store the same few things however many jobs there are."""
    redis: Any = connect(locked_with_token.store_url)
    jobs = JobRepository(redis)
    assert jobs.create("job_" + "1" * 24, "a", {"request": {}, "spec": {}, "resolved": {}, "metadata": {}})
    time.sleep(0.2)
    found = samples(locked_with_token, TOKEN)
    assert value(found, "known_jobs", status="queued") == 1
    assert 0.2 <= value(found, "known_queue_oldest_seconds") < 60

    def calls() -> int:
        return sum(stats["calls"] for stats in redis.info("commandstats").values())

    def asked() -> int:
        before = calls()
        list(StoreCollector(MetricsRepository(redis), jobs).collect())
        return calls() - before

    few = asked()
    for tenant in ("a", "b"):
        redis.zadd(f"known:tenant:{tenant}:jobs:{JobStatus.SUCCEEDED.value}", {f"job_{n}": n for n in range(5000)})
    assert asked() == few
    assert value(samples(locked_with_token, TOKEN), "known_jobs", status="succeeded") == 5000  # of known tenants
