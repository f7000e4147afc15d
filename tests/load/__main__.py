"""Load on one API process: ``make load``. Prints a table, writes it as JSON, and exits 1 where a limit is broken.

A store with 10,000 jobs, twenty of which run: a stand-in for twenty workers on other machines claims them and writes
their events and heartbeats through the real script. 500 clients (tests/load/users.py) poll, list and follow them.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from heapq import heapify, heapreplace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import psutil

from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobRepository, connect
from app.jobs.schemas import ENHANCE_EXAMPLES
from known_core.spec import JobSpec
from known_core.stack import Stack

_LEASE_S = 60.0
_P99_LIMIT_MS, _LIST_LIMIT_MS, _GROWTH_LIMIT = 250, 100, 0.05
_ERROR = {"code": "worker_died", "message": "m" * 80, "hint": "h" * 80, "retryable": False}
_RESULT = {"selected": "x4", "conclusion": "c" * 120}


def _job(repository: JobRepository, end: JobStatus | None) -> tuple[str, int]:
    """A job as the service records it, run to an end (None: it runs). Returns: its id and its fence."""
    job_id = new_job_id()
    spec = JobSpec(model=Path("/model"), dataset=Path("/data"))
    fields = {
        "request": ENHANCE_EXAMPLES["transformers"]["value"],
        "spec": spec.model_dump(mode="json"),
        "hub": {},
        "resolved": {"task": "image-classification", "classes": [f"class {index}" for index in range(20)]},
        "metadata": {"experiment": "load"},
    }
    repository.create(job_id, "local", fields)
    if end is JobStatus.CANCELED:
        repository.cancel(job_id)
        return job_id, 0
    fence = repository.claim(job_id, "load", _LEASE_S, 3)
    assert fence is not None
    repository.mark_running(job_id, fence)
    if end is not None:
        repository.finish(job_id, fence, end, _RESULT if end is JobStatus.SUCCEEDED else _ERROR)
    return job_id, fence


def _work(repository: JobRepository, running: list[tuple[str, int]], events_per_s: float, stop: Event) -> None:
    """What twenty workers write, each in its own time: progress of its job, and its heartbeat."""
    turns = [(random.uniform(0, 1 / events_per_s), 1, job) for job in running]
    heapify(turns)
    begun = time.monotonic()
    while not stop.wait(max(0, begun + turns[0][0] - time.monotonic())):
        due, step, (job_id, fence) = turns[0]
        progress = {"phase": "forgetting", "step": step, "total": 10**6, "eta_seconds": 1.0}
        repository.add_event(job_id, fence, {"type": "progress", **progress}, {"progress": json.dumps(progress)})
        if step % 20 == 0:
            repository.heartbeat(job_id, fence, _LEASE_S)
        heapreplace(turns, (due + 1 / events_per_s, step + 1, (job_id, fence)))


def _percentile(times_ms: list[float], share: float) -> float:
    return sorted(times_ms)[min(len(times_ms) - 1, int(share * len(times_ms)))]


def _list_alone(url: str, ended: list[str]) -> dict[str, Any]:
    """Lists without other load: the store's size is what they feel."""
    times = []
    with httpx.Client(base_url=url) as client:
        for _ in range(400):
            parameters: dict[str, str | int] = {"limit": 20}
            if random.random() < 0.5:
                parameters["after"] = random.choice(ended)
            if random.random() < 0.5:
                parameters["status"] = random.choice(["failed", "canceled", "succeeded"])
            answer = client.get("/v1/jobs", params=parameters)
            assert answer.status_code == 200, answer.text
            times.append(1000 * answer.elapsed.total_seconds())
    return {"name": "list, alone", "requests": len(times), "failures": 0,
            "p50_ms": round(_percentile(times, 0.5)), "p99_ms": round(_percentile(times, 0.99))}  # fmt: skip


def _rows(stats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for entry in stats:
        times = [float(ms) for ms, count in entry["response_times"].items() for _ in range(count)]
        rows.append({"name": entry["name"], "requests": entry["num_requests"], "failures": entry["num_failures"],
                     "p50_ms": round(_percentile(times, 0.5)), "p99_ms": round(_percentile(times, 0.99))})  # fmt: skip
    return rows


def _memory(api: psutil.Process, seconds: float, samples: list[tuple[float, int]], stop: Event) -> None:
    begun = time.monotonic()
    while not stop.wait(min(5.0, seconds / 20)):
        samples.append((time.monotonic() - begun, api.memory_info().rss))


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--events-per-second", type=float, default=1.0, help="of each running job")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder), port=0) as stack:
        stack.stop_one("worker")
        repository = JobRepository(connect(stack.store_url))
        ends = [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED]
        print(f"writing {given.jobs} jobs", file=sys.stderr)
        with ThreadPoolExecutor(16) as pool:
            ended = [job_id for job_id, _ in pool.map(lambda n: _job(repository, ends[n % 3]), range(given.jobs - 20))]
        running = [_job(repository, None) for _ in range(20)]
        rows = [_list_alone(stack.url, ended)]
        stop, memory = Event(), list[tuple[float, int]]()
        api = psutil.Process(stack.pids()["api"])
        threads = [
            Thread(target=_work, args=(repository, running, given.events_per_second, stop)),
            Thread(target=_memory, args=(api, given.seconds, memory, stop)),
        ]
        for thread in threads:
            thread.start()
        print(f"{given.users} clients for {given.seconds} s", file=sys.stderr)
        jobs = {"running": [job_id for job_id, _ in running], "ended": random.sample(ended, min(500, len(ended)))}
        cpu = api.cpu_times()
        locust = subprocess.run(
            [sys.executable, "-m", "locust", "--locustfile", str(Path(__file__).with_name("users.py")), "--headless",
             "--users", str(given.users), "--spawn-rate", "50", "--run-time", f"{given.seconds}s", "--host", stack.url,
             "--json", "--skip-log", "--reset-stats", "--stop-timeout", "1"],
            env={**os.environ, "LOAD_JOBS": json.dumps(jobs)}, stdout=subprocess.PIPE, check=False, text=True,
        )  # fmt: skip
        used = api.cpu_times()
        stop.set()
        for thread in threads:
            thread.join()
    rows += _rows(json.loads(locust.stdout))
    settled = [rss for at, rss in memory if at > 0.2 * given.seconds]  # after every client has come
    third = len(settled) // 3
    growth = sum(settled[-third:]) / sum(settled[:third]) - 1
    report = {
        "users": given.users, "jobs": given.jobs, "seconds": given.seconds, "routes": rows,
        "api_memory_mb": {"first third": round(sum(settled[:third]) / third / 1e6, 1),
                          "last third": round(sum(settled[-third:]) / third / 1e6, 1), "growth": round(growth, 4)},
        "api_cores": round((used.user + used.system - cpu.user - cpu.system) / given.seconds, 2),
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'':22}{'requests':>9}{'failures':>9}{'p50 ms':>8}{'p99 ms':>8}")
    for row in rows:
        print(f"{row['name']:22}{row['requests']:>9}{row['failures']:>9}{row['p50_ms']:>8}{row['p99_ms']:>8}")
    print(f"API memory {report['api_memory_mb']}, {report['api_cores']} cores")
    broken = [f"{row['name']}: {row['failures']} failures" for row in rows if row["failures"]]
    broken += [f"{row['name']}: p99 {row['p99_ms']} ms" for row in rows
               if row["p99_ms"] >= (_LIST_LIMIT_MS if row["name"].startswith("list,") else _P99_LIMIT_MS)]  # fmt: skip
    broken += [f"API memory grew by {growth:.1%}"] if growth > _GROWTH_LIMIT else []
    print("\n".join(f"BROKEN {line}" for line in broken) or "every limit is kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
