"""A stack that faults are made in, and what must be true of every job after them."""

import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from app.jobs.repository import connect
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.conftest import Inputs, ended

PHASES = ["downloading", "evaluating_before", *(f"forgetting {stage} of 4" for stage in range(1, 5)), "nowcasting",
          "calibrating", "evaluating_after", "charting", "packaging"]  # fmt: skip
AWAY = ("server_unreachable", "store_unavailable")  # what a client hears while something is started again
LEASE_S = 4.0  # tests.conftest.SETTINGS
MODULES = ("worker.fetcher", "worker.helper", "worker.publisher", "worker.trainer")
TERMINAL = ("succeeded", "failed", "canceled")


def processes(job_id: str, modules: Iterable[str] = MODULES) -> list[psutil.Process]:
    """The running processes of a job."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(module in line for module in modules) and any(job_id in part for part in line):
            found.append(process)
    return found


def trainers(job_id: str = "job_") -> list[psutil.Process]:
    """The running trainer processes of a job, or of any."""
    return processes(job_id, ["worker.trainer"])


def until(true: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Scene:
    """A running stack with what is needed to disturb it.

    Args:
        undisturbed: content_sha256 of the job with the same request that nobody disturbed.
        facts: what the table says of the test: phases, outcome, attempts, same bytes.
    """

    def __init__(
        self, stack: Stack, folder: Path, client: Client, inputs: Inputs, undisturbed: str, facts: dict[str, Any]
    ) -> None:
        self.stack, self.folder, self.client, self.inputs = stack, folder, client, inputs
        self.undisturbed, self.facts = undisturbed, facts

    @property
    def store(self) -> Redis:
        return connect(self.stack.store_url)

    def start(self, **changes: Any) -> str:
        request = self.inputs.request(self.client, self.stack.url, **changes)
        return str(self.client.enhance(request)["id"])

    def wait_for(self, job_id: str, phase: str) -> None:
        """Until a phase (``forgetting 2 of 4``) has begun."""
        for event in self.client.events(job_id):
            if event["type"] == "phase" and f"{event['phase']} {event['detail']}".strip() == phase:
                return
        raise AssertionError(f"{job_id} ended before {phase}: {self.client.job(job_id)}")

    def strike(self, job_id: str, phases: list[str], fault: Callable[[str], None]) -> list[str]:
        """Make a fault once in each phase, as soon as its event is seen; returns the phases it was made in."""
        left, struck = list(phases), []
        for event in self.client.events(job_id):
            if event["type"] == "phase" and left:
                phase = f"{event['phase']} {event['detail']}".strip()
                if phase in left:
                    fault(job_id)
                    struck.append(phase)
                    left = left[left.index(phase) + 1 :]
        self.facts["phases"] = "every" if struck == PHASES else ", ".join(struck)
        return struck

    def job(self, job_id: str) -> dict[str, Any]:
        """The job; the API may be on its way back."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.client.job(job_id).raw
            except KnownError as error:
                if error.code not in AWAY or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def judge(self, job_id: str, status: str = "succeeded", same_bytes: bool = True) -> dict[str, Any]:
        """Wait for the end of a job and check everything that no fault may change; returns the job."""
        self.job(job_id)  # the API answers
        ended(self.client, job_id)
        job = self.job(job_id)
        assert job["status"] == status, f"{job['error']}\n{self.client.logs(job_id)}"
        self._check_events(job_id, status)
        self._check_store(job_id, status)
        until(lambda: processes(job_id) == [], "processes are left", 10)
        self._check_files(job_id)
        if status == "succeeded" and same_bytes:
            assert self.content(job_id) == self.undisturbed
        self.facts["outcome"] = status if status != "failed" else f"failed: {job['error']['code']}"
        self.facts["attempts"] = max(job["attempts"], self.facts.get("attempts", 0))
        self.facts["same"] = "yes" if status == "succeeded" and same_bytes else "-"
        return job

    def job_count(self) -> int | None:
        """How many jobs the API lists; None while it does not answer."""
        try:
            return len(list(self.client.jobs()))
        except KnownError as error:
            if error.code in AWAY:
                return None
            raise

    def content(self, job_id: str) -> str:
        return content(self.client, job_id)

    def _check_events(self, job_id: str, status: str) -> None:
        page = list(self.client.events(job_id, follow=False))
        ids = [tuple(map(int, event.id.split("-"))) for event in page]
        assert ids == sorted(set(ids))
        ends = [event["status"] for event in page if event.get("status") in TERMINAL]
        assert ends == [status]
        assert page[-1].data == {"type": "status", "status": status}

    def _check_store(self, job_id: str, status: str) -> None:
        store: Any = self.store
        tenant = store.hget(f"known:job:{job_id}", "tenant")
        listed = [key for key in store.scan_iter(f"known:tenant:{tenant}:jobs:*") if store.zscore(key, job_id)]
        assert listed == [f"known:tenant:{tenant}:jobs:{status}"]
        assert store.zscore("known:jobs:open", job_id) is None
        assert not store.hexists(f"known:job:{job_id}", "lease_until")

    def _check_files(self, job_id: str) -> None:
        job_folder = self.folder / "jobs" / job_id
        if (job_folder / "artifacts" / "manifest.json").is_file():
            left = [path for path in job_folder.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
            assert left == []

    # What faults are made on.

    def supervisors(self, job_id: str) -> list[psutil.Process]:
        """The processes that supervise a job's trainers."""
        return [parent for server in self.fork_servers(job_id) if (parent := server.parent()) is not None]

    def fork_servers(self, job_id: str) -> list[psutil.Process]:
        """The processes that a job's trainers were forked from."""
        parents = [parent for trainer in trainers(job_id) if (parent := trainer.parent()) is not None]
        assert all("worker.forkserver" in parent.cmdline() for parent in parents)
        return parents

    def target(self, name: str, job_id: str) -> list[psutil.Process]:
        """The processes that a fault of this name is made on."""
        if name == "trainer":
            return trainers(job_id)
        if name == "supervisor":
            return self.supervisors(job_id)
        if name == "fork server":
            return self.fork_servers(job_id)
        return [psutil.Process(self.stack.pids()[name])]

    def kill(self, name: str, job_id: str) -> None:
        """kill -9, and what a service manager would start again is."""
        for process in self.target(name, job_id):
            process.kill()
        if name == "worker":
            until(lambda: not trainers(job_id), "the trainer outlived its worker", 10)
        if name in ("worker", "api", "valkey"):
            self.stack.restart(name)

    def freeze(self, name: str, job_id: str, seconds: float = LEASE_S + 1.5) -> None:
        """SIGSTOP for longer than the lease, then SIGCONT."""
        stopped = self.target(name, job_id)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        for process in stopped:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


def content(client: Client, job_id: str) -> str:
    """One hash over all of a job's artifacts."""
    return str(client.manifest(job_id)["content_sha256"])
