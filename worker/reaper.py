"""Looks for jobs that nobody works on: a lease that ran out, a wake-up that was lost."""

import logging
import socket
from collections.abc import Callable
from threading import Event, Thread

from app.jobs.repository import REQUEUE_GRACE_MS, JobRepository
from worker.settings import WorkerSettings

_log = logging.getLogger(__name__)


class Reaper:
    """A thread that sends wake-ups. Every worker has one; several do no harm.

    Args:
        wake: sends the wake-up of a job.
    """

    def __init__(self, repository: JobRepository, settings: WorkerSettings, wake: Callable[[str], None]) -> None:
        self._repository, self._settings, self._wake = repository, settings, wake
        self._name = socket.gethostname()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> int:
        """Wake up every overdue job; returns how many there were."""
        overdue = self._repository.overdue()
        for job_id in overdue:
            self._repository.look_again(job_id, REQUEUE_GRACE_MS)
            self._wake(job_id)
        return len(overdue)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._repository.worker_alive(self._name, int(3 * self._settings.reap_seconds) + 1)
                if count := self.look():
                    _log.info("woke up %d jobs that nobody was working on", count)
            except Exception:  # the thread must outlive any outage of the store
                _log.exception("the reaper could not look; it will again")
            self._stop.wait(self._settings.reap_seconds)
