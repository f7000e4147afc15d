"""The Celery side: one task, which is a wake-up by id. ``celery --app worker.tasks worker``."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

from celery import Celery, signals
from celery.worker import state

from app.jobs.placement import GPU, Capacity
from app.jobs.queue import HELP, WAKE, call_helpers, make_celery
from app.jobs.repository import JobNotFound, JobRepository, connect
from app.webhooks.repository import WebhookRepository
from known_core.errors import KnownError
from known_core.logs import configure_logs
from known_core.processes import die_with_parent
from known_core.schema import RecordTooNew
from known_core.traces import start_tracing
from worker.calibration import Calibrator
from worker.courier import Courier
from worker.idle import Idle
from worker.isolation import check
from worker.machine import describe_load, describe_machine
from worker.orphans import kill_orphans
from worker.periodic import Periodic
from worker.processes import ready, start_seconds
from worker.reaper import Reaper
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor
from worker.sweeper import Sweeper, sweeps
from worker.waking import Waker

_log = logging.getLogger(__name__)
settings = WorkerSettings()
celery: Celery = make_celery(settings.redis_url)
if settings.queues and GPU not in settings.queues:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # its jobs are for a CPU, whatever the machine has
queues = settings.served(has_gpu=bool(describe_machine()["gpus"]))
celery.amqp.queues.select(queues)
_STOP_SIGNAL = signal.SIGUSR2  # from the main process to the one that supervises
_stopping = Event()
_children: list[Any] = []  # the pool, once the worker is ready
_threads: list[Periodic | Courier] = []


@celery.task(name=WAKE)  # type: ignore[untyped-decorator]
def look_at(job_id: str, refusals: int = 0) -> None:
    """Run the job, or the one whose turn it is before it; a job that is held or done is left alone.

    Args:
        refusals: how many workers have looked, and passed it on.
    """
    repository = JobRepository(connect(settings.redis_url))
    waker = Waker(celery, repository)
    with suppress(JobNotFound), _left_to_newer():  # deleted meanwhile
        if _stopping.is_set():
            waker.send(job_id)
            return
        choice = repository.next(_capacity(), settings.max_running_jobs, job_id)
        if choice.job_id is None:
            if choice.passed_over is not None:
                waker.pass_on(choice.passed_over, queues, refusals)
            return  # or whoever waits is at its limit: the end of one of its jobs wakes the next
        if _supervisor().run(choice.job_id):
            waker.send(choice.job_id)
            return
        after = repository.next(_capacity(), settings.max_running_jobs)
        waiting = after.job_id or after.passed_over
        if waiting is not None:
            waker.send_if_missing(waiting)


@celery.task(name=HELP)  # type: ignore[untyped-decorator]
def help_with(job_id: str, turn: int, helpers: int) -> None:
    """Write shards of the nowcast of a job that another worker runs, if it still does."""
    if not _stopping.is_set():
        _supervisor().help(job_id, turn, helpers)


def _capacity() -> Capacity:
    spread = settings.gpus_of_a_network(len(describe_machine()["gpus"]))
    load = describe_load() if GPU in queues else {}
    return Capacity.of({"queues": queues, "load": load, "gpus_of_a_network": spread})


@contextmanager
def _left_to_newer() -> Iterator[None]:
    """A job of a newer release is for a worker of that; the reaper sends it another wake-up."""
    try:
        yield
    except RecordTooNew as error:
        _log.warning("%s", error)


def _supervisor() -> Supervisor:
    def call(job_id: str, shards: int) -> None:
        helpers = min(settings.nowcast_helpers, shards - 1)
        if helpers:
            call_helpers(celery, job_id, helpers)

    store = connect(settings.redis_url, timeout_s=min(30, settings.lease_seconds / 6), tries=1)  # a lease tries again
    return Supervisor(JobRepository(store), settings, _stopping.is_set, call)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logs(**_: Any) -> None:
    """In the worker and its pool alike; Celery leaves it to us then."""
    configure_logs()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _check_isolation(**_: Any) -> None:
    """Say what this machine cannot do; where the settings require it, do not start."""
    try:
        found = check(settings)
    except KnownError as error:
        raise SystemExit(str(error)) from error
    if found is None:
        _log.warning("KNOWN_ISOLATION is off: whoever finds a bug in what reads a model has this worker's rights")
    else:
        _log.log(logging.WARNING if found.reasons else logging.INFO, "%s", found)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _prepare_child(**_: Any) -> None:
    """In the pool's process: end with the worker, and hear that it is shutting down."""
    die_with_parent()
    ready(settings, 0)
    start_tracing("known-worker")
    signal.signal(_STOP_SIGNAL, lambda number, frame: _stopping.set())


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _start_threads(sender: Any, **_: Any) -> None:
    _children.append(sender.pool)
    kill_orphans(settings.data / "jobs")
    repository = JobRepository(connect(settings.redis_url))
    removing = sweeps(repository, settings)
    reaper = Reaper(repository, settings, Waker(celery, repository), queues)
    _log.info("serves the queues %s", ", ".join(queues))
    _threads.append(reaper)
    if settings.calibrate:

        def know(found: dict[str, Any]) -> None:
            reaper.know({"calibration": {**found, "start": start_seconds(settings, found["start"])}})

        _threads.append(Calibrator(settings.data / "calibrations", describe_machine(), know))
    _threads.append(Sweeper(removing, settings.sweep_seconds))
    _threads.append(Courier(WebhookRepository(connect(settings.redis_url)), settings))
    if settings.exit_when_idle_seconds:
        _threads.append(Idle(_has_work, settings.exit_when_idle_seconds, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    for thread in _threads:
        thread.start()


def _has_work() -> bool:
    """Whether a message was taken and is not done with."""
    return bool(state.reserved_requests or state.active_requests)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_children(**_: Any) -> None:
    """A deploy loses nothing: the trainer is stopped, its finished stages stay, the job goes back to the queue."""
    for thread in _threads:
        thread.stop()
    for pool in _children:
        for pid in pool.info["processes"]:
            os.kill(pid, _STOP_SIGNAL)
