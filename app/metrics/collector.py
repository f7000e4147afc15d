"""The store's figures as Prometheus reads them, made anew for every scrape."""

import logging
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from app.jobs.repository import PHASE_BUCKETS_S, JobRepository
from app.metrics.repository import MetricsRepository, Snapshot

_log = logging.getLogger(__name__)


class StoreCollector(Collector):
    """Where the store is away, ``known_store_up`` is 0 and the process's own metrics are there all the same."""

    def __init__(self, repository: MetricsRepository, jobs: JobRepository) -> None:
        self._repository, self._jobs = repository, jobs

    def describe(self) -> list[Metric]:
        return []  # registering asks no store

    def collect(self) -> Iterator[Metric]:
        snapshot = None
        try:
            snapshot = self._repository.read(self._jobs.worker_facts())
        except RedisError as error:
            _log.warning("no metrics of the store: %s", error)
        yield GaugeMetricFamily("known_store_up", "Whether the job store answered.", float(snapshot is not None))
        if snapshot is not None:
            yield from _jobs(snapshot)
            yield from _phases(snapshot)
            yield from _webhooks(snapshot)
            yield from _queues(snapshot)
            yield from _workers(snapshot)


def _jobs(snapshot: Snapshot) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("known_jobs", "Jobs that are kept, by state.", labels=["status"])
    for status, count in snapshot.jobs.items():
        jobs.add_metric([status.value], count)
    yield jobs
    yield GaugeMetricFamily(
        "known_queue_oldest_seconds", "How long ago the job that waits longest was made; 0: none waits.",
        snapshot.oldest_queued_s or 0.0,
    )  # fmt: skip
    yield _counter(snapshot, "known_job_claims", "Attempts at jobs that workers began.", "claims")
    yield _counter(snapshot, "known_jobs_ended", "Jobs that ended, by how.", "ended", "status")
    yield _counter(snapshot, "known_job_failures", "Jobs that failed, by the code of their error.", "failed", "code")


def _webhooks(snapshot: Snapshot) -> Iterator[Metric]:
    yield _counter(
        snapshot, "known_webhook_attempts", "Attempts to deliver a webhook, by what it is since.", "webhook", "status"
    )
    yield GaugeMetricFamily("known_webhooks_due", "Webhooks that wait for their next attempt.", snapshot.webhooks_due)


def _counter(snapshot: Snapshot, name: str, text: str, kind: str, *labels: str) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    found = {key.split(" ")[1:][0] if labels else "": value for key, value in snapshot.counters.items()
             if key.split(" ")[0] == kind}  # fmt: skip
    if not labels:
        metric.add_metric([], found.get("", 0.0))
    for label, value in sorted(found.items()) if labels else ():
        metric.add_metric([label], value)
    return metric


def _phases(snapshot: Snapshot) -> Iterator[Metric]:
    """From the counters ``phase NAME BOUND|sum``; a bound counts what is longer than the one before and not than it."""
    by_phase: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in snapshot.counters.items():
        kind, *rest = key.split(" ")
        if kind == "phase":
            by_phase[rest[0]][rest[1]] = value
    metric = HistogramMetricFamily("known_phase_seconds", "How long phases of jobs took.", labels=["phase"])
    for phase, found in sorted(by_phase.items()):
        buckets, total = [], 0.0
        for bound in (*PHASE_BUCKETS_S, float("inf")):
            total += found.get(f"{bound:g}", 0.0)
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", total))
        metric.add_metric([phase], buckets, found.get("sum", 0.0))
    yield metric


def _queues(snapshot: Snapshot) -> Iterator[Metric]:
    wake_ups = GaugeMetricFamily("known_queue_wake_ups", "Messages that lie in a queue.", labels=["queue"])
    workers = GaugeMetricFamily("known_queue_workers", "Workers that serve a queue.", labels=["queue"])
    for queue, length in snapshot.wake_ups.items():
        wake_ups.add_metric([queue], length)
        workers.add_metric([queue], sum(queue in (facts.get("queues") or ()) for facts in snapshot.workers.values()))
    yield from (wake_ups, workers)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("known_workers", "Workers that were heard from lately.", len(snapshot.workers))
    memory = GaugeMetricFamily("known_worker_memory_bytes", "Memory of a worker's machine.", labels=["worker", "kind"])
    gpu_memory = GaugeMetricFamily("known_gpu_memory_bytes", "Memory of a GPU.", labels=["worker", "gpu", "kind"])
    busy = GaugeMetricFamily(
        "known_gpu_utilization_ratio", "Share of the last second that a GPU computed.", labels=["worker", "gpu"]
    )
    for name, facts in snapshot.workers.items():
        load = facts.get("load") or {}
        for kind, size in (load.get("memory") or {}).items():
            memory.add_metric([name, kind], size)
        for gpu in load.get("gpus") or ():
            label = f"{gpu['index']} {gpu['name']}"
            for kind in ("used", "total"):
                gpu_memory.add_metric([name, label, kind], gpu[kind])
            busy.add_metric([name, label], gpu["utilization"])
    yield from (memory, gpu_memory, busy)
