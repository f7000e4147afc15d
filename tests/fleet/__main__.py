"""What workers add to one another: ``make fleet``. Prints a table, writes it as JSON, exits 1 where a limit is broken.

1, 2, 4 and 8 real Celery workers on one store of their own, each given the same number of jobs, whose trainer is a stub
that sleeps: what is measured is all that lies between jobs (wake-ups, turns, claims, leases, events, processes), not
how many cores this machine has. Then real jobs on CPUs, each worker with its trainers in a cgroup that has a part of a
core, as if it were a machine of that size: two cores hold eight of them. API and store are outside of these. The clock
runs from the first job to the end of the last one, after each worker has done one job to warm up.
"""

import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from app.jobs.repository import JobRepository, connect
from known_core.client import Client
from known_core.stack import Stack
from known_core.statistics import paired_interval
from tests.conftest import SETTINGS, make_inputs
from tests.fleet.fleet import REAL, STUB, Fleet, succeeded
from tests.fleet.stub import SECONDS
from tests.worker.conftest import own_server

_LIMIT = 0.9  # of one worker's throughput that each of several has to reach
_LONGEST_S = 900.0


def _grow(fleet: Fleet, app: str, sizes: Iterable[int], each: int, queue: Callable[[], str]) -> list[dict[str, float]]:
    """A fleet that grows. Returns: for each size jobs a minute and worker, and how many cores were busy."""
    rows = []
    for size in sizes:
        for number in range(len(fleet.workers), size):
            fleet.join(f"worker-{number}", app)
        fleet.wait_until_ready()
        while not all(fleet.ran(name) for name in fleet.workers):
            fleet.wait([queue() for _ in range(size)], _LONGEST_S)
        psutil.cpu_percent()
        begun = time.monotonic()
        jobs = fleet.wait([queue() for _ in range(size * each)], _LONGEST_S)
        seconds = time.monotonic() - begun
        if not succeeded(jobs):
            raise SystemExit(f"did not succeed: {[(job.id, job.error) for job in jobs if job.error]}")
        cores = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        rows.append({"workers": size, "per_minute_and_worker": 60 * each / seconds, "busy_cores": cores})
        print(f"  {size} workers: {size * each} jobs in {seconds:.2f} s, {cores:.1f} cores busy", file=sys.stderr)
    return rows


def _stubs(folder: Path, sizes: list[int], each: int, seconds: float) -> list[dict[str, float]]:
    with own_server() as repository:
        url = f"redis://127.0.0.1:{repository._redis.connection_pool.connection_kwargs['port']}/0"
        environment = {SECONDS: str(seconds), "KNOWN_ISOLATION": "off"}
        with Fleet(folder, repository, url, environment) as fleet:
            return _grow(fleet, STUB, sizes, each, fleet.queue)


def _real(folder: Path, sizes: list[int], each: int, cores: float | None) -> list[dict[str, float]]:
    inputs = make_inputs(folder)
    with Stack(folder / "data", port=0, environment=SETTINGS, workers=0) as stack, Client(stack.url) as client:
        repository = JobRepository(connect(stack.store_url))
        one_thread = {"OMP_NUM_THREADS": "1"}
        with Fleet(folder / "data", repository, stack.store_url, one_thread, cores) as fleet:
            return _grow(fleet, REAL, sizes, each, lambda: str(client.enhance(inputs.request(client, stack.url))["id"]))


def _summary(kind: str, repeats: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each size: throughput relative to that of one worker in the same repeat, with its 95% interval."""
    rows = []
    for place in range(len(repeats[0])):
        rates = [repeat[place]["per_minute_and_worker"] for repeat in repeats]
        relative = [repeat[place]["per_minute_and_worker"] / repeat[0]["per_minute_and_worker"] for repeat in repeats]
        row: dict[str, Any] = {
            "jobs": kind, "workers": int(repeats[0][place]["workers"]), "repeats": len(repeats),
            "per_minute_and_worker": sum(rates) / len(rates), "relative": sum(relative) / len(relative),
            "busy_cores": sum(repeat[place]["busy_cores"] for repeat in repeats) / len(repeats),
        }  # fmt: skip
        if place and len(repeats) > 1:
            interval = paired_interval(relative, [0.0] * len(relative))
            row |= {"low": interval.low, "high": interval.high}
        rows.append(row)
    return rows


def _named(cores: float) -> str:
    return f"real, {cores:g} cores each" if cores else "real, any core"


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--each", type=int, default=3, help="jobs for each worker")
    parser.add_argument("--seconds", type=float, default=6.0, help="that the stub sleeps")
    parser.add_argument("--repeats", type=int, default=3, help="of every fleet, from its start on")
    parser.add_argument("--real-sizes", type=int, nargs="*", default=[1, 2, 4, 8], help="none: no real jobs")
    parser.add_argument("--real-each", type=int, default=3)
    parser.add_argument("--real-cores", type=float, default=0.15, help="for each worker of real jobs; 0: no limit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    stubs, real = [], []
    for repeat in range(given.repeats):
        print(f"repeat {repeat + 1} of {given.repeats}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            stubs.append(_stubs(Path(folder), given.sizes, given.each, given.seconds))
        if given.real_sizes:
            with tempfile.TemporaryDirectory() as folder:
                real.append(_real(Path(folder), given.real_sizes, given.real_each, given.real_cores))
    rows = _summary(f"stub, {given.seconds:g} s", stubs) + (_summary(_named(given.real_cores), real) if real else [])
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        print("| jobs | workers | jobs a minute and worker | relative to one | 95% interval | busy cores |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            interval = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else ""
            print(f"| {row['jobs']} | {row['workers']} | {row['per_minute_and_worker']:.2f} | {row['relative']:.3f} "
                  f"| {interval} | {row['busy_cores']:.1f} |")  # fmt: skip
    broken = [f"{row['jobs']}, {row['workers']} workers: {row['relative']:.3f}" for row in rows
              if row["relative"] < _LIMIT]  # fmt: skip
    print("\n".join(f"BROKEN {line}" for line in broken) or "every limit is kept", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
