"""Looks for jobs that nobody works on: a lease that ran out, a wake-up that was lost."""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from app.jobs.repository import REQUEUE_GRACE_MS, JobNotFound, JobRepository
from worker.machine import describe_load, describe_machine
from worker.periodic import Periodic
from worker.settings import WorkerSettings

_log = logging.getLogger(__name__)


class Reaper(Periodic):
    """A thread that sends wake-ups and says that this worker lives. Every worker has one; several do no harm.

    Args:
        wake: sends the wake-up of a job.
    """

    def __init__(self, repository: JobRepository, settings: WorkerSettings, wake: Callable[[str], None]) -> None:
        super().__init__(settings.reap_seconds, self._round, name="reaper")
        self._repository, self._wake = repository, wake
        self._name = socket.gethostname()
        self._facts: dict[str, Any] = {}
        self._alive_s = int(3 * settings.reap_seconds) + 1

    def know(self, facts: Mapping[str, Any]) -> None:
        """More that it says of this worker from now on."""
        self._facts |= facts
        self._beat()

    def look(self) -> int:
        """Wake up every overdue job; returns how many there were."""
        overdue = self._repository.overdue()
        for job_id in overdue:
            try:
                self._repository.look_again(job_id, REQUEUE_GRACE_MS)
            except JobNotFound:  # deleted meanwhile
                continue
            self._wake(job_id)
        return len(overdue)

    def _round(self) -> None:
        self._beat()
        if count := self.look():
            _log.info("woke up %d jobs that nobody was working on", count)

    def _beat(self) -> None:
        self._repository.worker_alive(
            self._name, self._alive_s, describe_machine() | {"load": describe_load()} | self._facts
        )
