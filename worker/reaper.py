"""Looks for jobs that nobody works on: a lease that ran out, a wake-up that was lost."""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from app.jobs.placement import Queue
from app.jobs.repository import REQUEUE_GRACE_MS, JobNotFound, JobRepository
from worker.machine import describe_load, describe_machine
from worker.periodic import Periodic
from worker.settings import WorkerSettings
from worker.waking import Waker

_log = logging.getLogger(__name__)


class Reaper(Periodic):
    """A thread that sends wake-ups and says that this worker lives. Every worker has one; several do no harm.

    Args:
        queues: that this worker serves.
    """

    def __init__(
        self, repository: JobRepository, settings: WorkerSettings, waker: Waker, queues: tuple[Queue, ...]
    ) -> None:
        super().__init__(settings.reap_seconds, self._round, name="reaper")
        self._repository, self._waker = repository, waker
        self._name = worker_name(os.getpid())
        spread = settings.gpus_of_a_network(len(describe_machine()["gpus"]))
        self._facts: dict[str, Any] = {"queues": queues, "gpus_of_a_network": spread}
        self._alive_s = int(3 * settings.reap_seconds) + 1
        self._joined = False

    def know(self, facts: Mapping[str, Any]) -> None:
        """More that it says of this worker from now on."""
        self._facts |= facts
        self._beat()

    def look(self) -> int:
        """Wake up whoever can take an overdue job; returns how many wake-ups were sent."""
        overdue = self._repository.overdue()
        for job_id in overdue:
            with suppress(JobNotFound):  # deleted meanwhile
                self._repository.look_again(job_id, REQUEUE_GRACE_MS)
        return self._waker.look_after(overdue)

    def _round(self) -> None:
        self._beat()
        if not self._joined:  # what waited for a worker like this one need not wait for its next look
            self._waker.join()
            self._joined = True
        if count := self.look():
            _log.info("sent %d wake-ups for jobs that nobody was working on", count)

    def _beat(self) -> None:
        self._repository.worker_alive(
            self._name, self._alive_s, describe_machine() | {"load": describe_load()} | self._facts
        )

    def _run(self) -> None:
        super()._run()
        with suppress(RedisError):  # it is forgotten by itself, a little later
            self._repository.worker_left(self._name)


def worker_name(pid: int) -> str:
    """What a worker of this machine is known by."""
    return f"{socket.gethostname()}:{pid}"
