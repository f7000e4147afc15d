"""The Celery side: one task, which is a wake-up by id. ``celery --app worker.tasks worker``."""

import os
import signal
from threading import Event
from typing import Any

from celery import Celery, signals

from app.jobs.queue import HELP, WAKE, call_helpers, make_celery, wake
from app.jobs.repository import JobRepository, connect
from known_core.processes import die_with_parent
from worker.orphans import sweep
from worker.reaper import Reaper
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor

settings = WorkerSettings()
celery: Celery = make_celery(settings.redis_url)
_STOP_SIGNAL = signal.SIGUSR2  # from the main process to the one that supervises
_stopping = Event()
_children: list[Any] = []  # the pool, once the worker is ready
_reapers: list[Reaper] = []


@celery.task(name=WAKE)  # type: ignore[untyped-decorator]
def look_at(job_id: str) -> None:
    """Run the job if it is there to be taken; a job that is held or done is left alone."""
    if _stopping.is_set():
        wake(celery, job_id)
        return
    if _supervisor().run(job_id):
        wake(celery, job_id)


@celery.task(name=HELP)  # type: ignore[untyped-decorator]
def help_with(job_id: str, turn: int, helpers: int) -> None:
    """Write shards of the nowcast of a job that another worker runs, if it still does."""
    if not _stopping.is_set():
        _supervisor().help(job_id, turn, helpers)


def _supervisor() -> Supervisor:
    def call(job_id: str, shards: int) -> None:
        helpers = min(settings.nowcast_helpers, shards - 1)
        if helpers:
            call_helpers(celery, job_id, helpers)

    store = connect(settings.redis_url, timeout_s=min(30, settings.lease_seconds / 6), tries=1)  # a lease tries again
    return Supervisor(JobRepository(store), settings, _stopping.is_set, call)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _prepare_child(**_: Any) -> None:
    """In the pool's process: end with the worker, and hear that it is shutting down."""
    die_with_parent()
    signal.signal(_STOP_SIGNAL, lambda number, frame: _stopping.set())


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_reaper(sender: Any, **_: Any) -> None:
    _children.append(sender.pool)
    sweep(settings.data / "jobs")
    reaper = Reaper(JobRepository(connect(settings.redis_url)), settings, lambda job_id: wake(celery, job_id))
    reaper.start()
    _reapers.append(reaper)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_children(**_: Any) -> None:
    """A deploy loses nothing: the trainer is stopped, its finished stages stay, the job goes back to the queue."""
    for reaper in _reapers:
        reaper.stop()
    for pool in _children:
        for pid in pool.info["processes"]:
            os.kill(pid, _STOP_SIGNAL)
