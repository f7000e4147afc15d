"""Real workers on a store of their own, and jobs for them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.jobs.placement import Device, Needs, place
from app.jobs.queue import make_celery, wake
from app.jobs.record import Job, JobStatus, new_job_id
from app.jobs.repository import JobRepository
from known_core.processes import die_with_parent
from known_core.spec import JobSpec
from tests.cgroups import cgroup, cpu_quota
from tests.fleet.stub import SECONDS

STUB, REAL = "tests.fleet.tasks", "worker.tasks"
_START_S = 300.0  # on a part of a core


class Fleet:
    """A context that stops the workers it has started.

    Args:
        folder: of data and logs.
        url: of the store.
        environment: added to that of every worker.
        cores: that a worker may use, with all that it starts, as if it were a machine of that size; None: any.
    """

    def __init__(
        self, folder: Path, repository: JobRepository, url: str, environment: Mapping[str, str],
        cores: float | None = None,
    ) -> None:  # fmt: skip
        self.repository, self._folder, self._url, self._cores = repository, folder, url, cores
        self._groups = ExitStack()
        self._environment = {
            "KNOWN_REDIS_URL": url, "KNOWN_DATA_DIR": str(folder), "KNOWN_CALIBRATE": "false", **environment
        }  # fmt: skip
        self._celery = make_celery(url)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.workers):
            self.kill(name)
        self._groups.close()
        self._celery.close()

    def join(self, name: str, app: str = STUB, **environment: str) -> None:
        """Start a worker. A stub needs nothing that takes long to import."""
        preload = {"KNOWN_TRAINER_PRELOAD": str(app != STUB)}
        group = self._groups.enter_context(cgroup("cpu", **cpu_quota(self._cores))) if self._cores else None

        def begin() -> None:
            die_with_parent()
            if group:
                group.write_text("0")  # whoever writes it

        with (self._folder / f"{name}.log").open("ab") as log:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", "celery", "--app", app, "worker", "--loglevel", "INFO", "--hostname", name],
                env={**os.environ, **preload, **self._environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=begin,
            )

    def leave(self, name: str) -> None:
        """SIGTERM, as a deploy does; returns at once."""
        self.workers[name].terminate()

    def kill(self, name: str) -> None:
        """SIGKILL, as a machine that loses its power: of its children, too."""
        process = self.workers.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait_until_ready(self) -> None:
        """Until the workers that run have said so."""
        pids = {str(process.pid) for process in self.workers.values() if process.poll() is None}

        def living() -> set[str]:
            return {name.rpartition(":")[2] for name in self.repository.workers()}

        wait_until(lambda: pids <= living(), f"{len(pids)} workers", _START_S)

    def ran(self, name: str) -> set[str]:
        """The ids of the jobs that a worker has begun."""
        return set(re.findall(r"attempt \d+ .*job_id=(job_\w+)", (self._folder / f"{name}.log").read_text()))

    def queue(self, device: Device = "auto", gigabytes: float = 0, tenant: str = "local") -> str:
        """A job, recorded and placed as the API does it."""
        job_id, needs = new_job_id(), Needs(device, int(gigabytes * 1e9))
        spec = JobSpec(model=Path("/model"), dataset=Path("/data")).model_dump(mode="json")
        fields = {"request": {}, "spec": spec, "hub": {}, "resolved": {}, "metadata": {}, "needs": asdict(needs)}
        self.repository.create(job_id, tenant, fields)
        placement = place(needs, self.repository.capacities())
        self.repository.wait_for(job_id, placement.waiting_for)
        for queue in placement.queues:
            wake(self._celery, job_id, queue)
        return job_id

    def wait(self, job_ids: Iterable[str], seconds: float) -> list[Job]:
        """The jobs, once all have ended."""
        left, jobs = list(job_ids), list[Job]()

        def ended() -> bool:
            while left and self.repository.status(left[0]).terminal:
                jobs.append(self.repository.get(left.pop(0)))
            return not left

        wait_until(ended, "the end of all jobs", seconds)
        return jobs


def wait_until(true: Callable[[], Any], what: str, seconds: float) -> None:
    """Raises: TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


def succeeded(jobs: Iterable[Job]) -> bool:
    return all(job.status is JobStatus.SUCCEEDED for job in jobs)


__all__ = ["REAL", "SECONDS", "STUB", "Fleet", "succeeded", "wait_until"]
