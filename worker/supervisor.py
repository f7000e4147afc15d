"""One job, supervised: claim it, start its processes, relay their events, renew the lease, stop them when asked.

Fetcher and publisher talk to the Hub and hold a token; the trainer between them has neither, and is confined
(:mod:`worker.isolation`).
"""

import errno
import json
import logging
import os
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from app.jobs.record import Job, JobStatus
from app.jobs.repository import JobRepository, LeaseLost
from app.jobs.secrets import Sealer
from app.jobs.settings import RUN, HubAccess
from app.storage.storage import Check
from known_core.errors import KnownError, disk_full
from known_core.files import folder_bytes, write_json
from known_core.logs import about, in_json
from known_core.spec import JobSpec, paths_of, with_paths
from known_core.traces import Phases, flush, mark_failed, span
from worker.carrier import Carrier, Errand
from worker.isolation import take_back
from worker.lease import Lease
from worker.machine import describe_machine
from worker.messages import TERMINAL, error_message
from worker.processes import TEMPORARY, ready, start, stop
from worker.settings import WorkerSettings
from worker.trainer import SPEC

_log = logging.getLogger(__name__)
_POLL_S = 0.5  # how soon a cancel or a shutdown is seen
_BUCKET_S = 600  # how long an absence of the bucket is waited for


class Supervisor:
    """Runs jobs one at a time.

    Args:
        stopping: whether this worker is shutting down; the job then goes back to the queue.
        call_helpers: takes a job's id and how many shards its nowcast has, when it begins.
    """

    def __init__(
        self,
        repository: JobRepository,
        settings: WorkerSettings,
        stopping: Callable[[], bool] = lambda: False,
        call_helpers: Callable[[str, int], None] = lambda job_id, shards: None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._stopping = stopping
        self._call_helpers = call_helpers

    def run(self, job_id: str) -> bool:
        """Run a job, if it is there to be taken.

        Returns:
            Whether the job is back in the queue and wants a wake-up.
        """
        owner = f"{socket.gethostname()}:{os.getpid()}"
        asked_at = time.monotonic()
        settings = self._settings
        fence = self._repository.claim(
            job_id, owner, settings.lease_seconds, settings.max_attempts, settings.max_running_jobs
        )
        if fence is None:
            return False
        lease = Lease(self._repository, job_id, fence, self._settings.lease_seconds, asked_at)
        try:
            attempt = _Attempt(job_id, lease, self._repository, self._settings, self._stopping, self._call_helpers)
            return attempt.run()
        except LeaseLost as error:
            _log.warning("%s; the trainer was stopped and nothing more was written", error)
            return False

    def help(self, job_id: str, turn: int, helpers: int) -> None:
        """Write shards of the nowcast of a job that another worker runs, while it runs.

        It takes no lease and writes nothing to the record: shards are the same bytes whoever writes them, and appear
        whole.
        """
        if self._repository.status(job_id) is not JobStatus.RUNNING:
            return
        folder = self._settings.job_folder(job_id)
        if not folder.is_dir():
            _log.warning("%s is not here: only workers that share KNOWN_DATA_DIR can help one another", folder)
            return
        with about(job_id=job_id), (folder / "log.txt").open("ab", buffering=0) as log:
            command = ["worker.helper", str(folder), str(turn), str(helpers)]
            try:
                while not ready(self._settings, _POLL_S):
                    if self._stopping():
                        return
                process = start(command, folder, self._settings, log.fileno())
            except ConnectionError as error:
                _log.warning("no help with %s: %s", job_id, error)
                return
            try:
                while process.poll() is None and not self._stopping():
                    if self._repository.status(job_id) is not JobStatus.RUNNING:
                        break
                    time.sleep(_POLL_S)
            finally:
                stop(process, self._settings.kill_grace_seconds)


class _NotCarried(Exception):
    """Bytes are not where they are needed. ``outcome``: why; None where it was stopped on request."""

    def __init__(self, outcome: dict[str, Any] | None) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class _Attempt:
    """One claim of one job: to run it, or to publish its result again."""

    def __init__(
        self,
        job_id: str,
        lease: Lease,
        repository: JobRepository,
        settings: WorkerSettings,
        stopping: Callable[[], bool],
        call_helpers: Callable[[str, int], None],
    ) -> None:
        self._job_id, self._lease = job_id, lease
        self._call_helpers = call_helpers
        self._repository, self._settings, self._stopping = repository, settings, stopping
        self._folder = settings.job_folder(job_id)
        self._carrier = Carrier(settings.storage(), settings, job_id)
        self._outcome: dict[str, Any] | None = None
        self._begun = time.monotonic()
        self._time_left_s = float("inf")
        self._phase = ("", 0.0)  # that runs, and since when
        self._spans = Phases()
        self._let_go = False  # stopped on request: the attempt does not count

    def run(self) -> bool:
        """Returns: whether the job is back in the queue."""
        job = self._lease.read(self._repository.get)
        try:
            with (
                about(job_id=job.id, request_id=job.request_id),
                span("attempt", job.traceparent, **{"known.job_id": job.id, "known.attempt": job.attempts}),
            ):
                return self._run_or_publish(job)
        finally:
            flush()

    def _run_or_publish(self, job: Job) -> bool:
        _log.info("attempt %d", job.attempts)
        if job.republish is None and job.max_seconds is not None:
            self._time_left_s = job.max_seconds - job.spent_ms / 1000
        try:
            return self._begin(job)
        except _NotCarried as error:
            if error.outcome is None or job.republish is None:
                return self._finish(error.outcome)
            return self._republished(job, error.outcome)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            failed = error_message(disk_full(self._folder))
            return self._finish(failed) if job.republish is None else self._republished(job, failed)

    def _begin(self, job: Job) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tidy()  # after an attempt whose supervisor died
        self._carry(lambda check: self._carrier.bring_log())
        with (self._folder / "log.txt").open("ab", buffering=0) as log:
            begun = f"attempt {job.attempts}"
            line = {"event": begun, "job_id": job.id, "request_id": job.request_id}
            log.write(f"{json.dumps(line) if in_json() else begun}\n".encode())
            try:
                sealed = self._lease.read(self._repository.secret)
                access = self._settings.hub_access(Sealer(self._settings).unseal(sealed) if sealed else None)
                if job.republish is None:
                    self._check_space(job)
            except KnownError as error:
                failed = error_message(error)
                return self._finish(failed) if job.republish is None else self._republished(job, failed)
            if job.republish is not None:
                return self._republish(job, access, log.fileno())
            return self._finish(self._run(job, access, log.fileno()))

    def _check_space(self, job: Job) -> None:
        """Raises: KnownError ``disk_full`` where less is free than what is left of the least it is expected to take."""
        if job.estimate is None:
            return
        needed = job.estimate["disk_bytes"]["low"] - folder_bytes(self._folder)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise KnownError(
                "disk_full",
                f"the job is expected to take {needed:,.0f} more bytes below {self._folder}, and {free:,} are free",
                "Free space and run it again, or make fewer candidates (nowcast.recurrences, nowcast.controls).",
                retryable=True,
            )

    def _run(self, job: Job, access: HubAccess, log: int) -> dict[str, Any] | None:
        """Fetch, train, publish; each is done at once where an earlier attempt has done it.

        Returns:
            The last message, or None where a process died or was stopped.
        """
        spec = with_paths(JobSpec.model_validate(job.spec), self._settings.data.joinpath)
        self._carry(lambda check: self._carrier.bring(spec, check))
        write_json(self._folder / SPEC, spec.model_dump(mode="json"))
        inputs = paths_of(spec).values()
        if job.hub:
            self._lease.write(self._repository.mark_running)
            access.cache.mkdir(parents=True, exist_ok=True)
            asked = {**_plain(access), "refs": job.hub}
            fetched = self._supervise("worker.fetcher", log, asked, reads=inputs, writes=[access.cache])
            if fetched is None or fetched["type"] == "error":
                return fetched
        with self._carrier.watching():
            options = [job.needs.device, str(self._settings.team_size), self._settings.team_sharding]
            team = self._settings.has_teams(len(describe_machine()["gpus"]))
            result = self._supervise("worker.trainer", log, reads=inputs, options=options, team=team)
        target = job.spec["output"].get("hub")
        if result is None or result["type"] == "error":
            return result
        self._carry(self._carrier.keep_result)
        if target is None:
            return result
        published = self._publish(access, target, result["selected"], log)
        return None if published is None else result | _publication(published)

    def _republish(self, job: Job, access: HubAccess, log: int) -> bool:
        assert job.republish is not None
        assert job.result is not None
        self._carry(self._carrier.bring_result)
        candidate = job.republish["candidate"] or job.result["selected"]
        published = self._publish(access, job.republish["hub"], candidate, log)
        return self._release() if published is None else self._republished(job, published)

    def _republished(self, job: Job, outcome: dict[str, Any]) -> bool:
        assert job.result is not None
        kept = {name: value for name, value in job.result.items() if name not in _PUBLICATION}
        self._lease.write(self._repository.republished, kept | _publication(outcome))
        return False

    def _publish(self, access: HubAccess, target: dict[str, Any], candidate: str, log: int) -> dict[str, Any] | None:
        return self._supervise("worker.publisher", log, {**_plain(access), "target": target, "candidate": candidate})

    def _supervise(
        self,
        module: str,
        log: int,
        asked: dict[str, Any] | None = None,
        reads: Iterable[Path] = (),
        writes: Iterable[Path] = (),
        options: Iterable[str] = (),
        team: bool = False,
    ) -> dict[str, Any] | None:
        """Run one of our modules on the job's folder to its end, relaying its events.

        Args:
            asked: given to it on standard input; it then has the network, and a token in what it reads.
            reads, writes: files and folders besides its own.
            options: the last words of its command.
            team: whether it may start processes that talk to one another.

        Returns:
            Its last message, or None where it died or was stopped.
        """
        if self._out_of_time():
            return self._limit_reached()
        try:
            while asked is None and not ready(self._settings, _POLL_S):
                self._renew_in_time()
                if self._is_to_stop():
                    return None
        except ConnectionError as error:
            _log.error("%s", error)
            return None
        read_end, write_end = os.pipe()
        try:
            command = [module, str(self._folder), str(write_end), *options]
            process = start(
                command,
                self._folder,
                self._settings,
                log,
                write_end,
                asked=asked,
                reads=reads,
                writes=writes,
                team=team,
            )
        except ConnectionError as error:  # the fork server was killed just now
            _log.error("%s", error)
            os.close(read_end)
            return None
        finally:
            os.close(write_end)
        self._outcome = None
        with span(module.removeprefix("worker.")):
            try:
                self._relay(read_end)
            except LeaseLost:
                stop(process, 0)  # another worker may have the job already
                raise
            finally:
                self._spans.enter(None)
                os.close(read_end)
                stop(process, self._settings.kill_grace_seconds)
        self._lease.renew()  # is the folder still ours?
        self._tidy()
        return self._outcome

    def _carry(
        self, transfer: Callable[[Check], None], patience_s: float = _BUCKET_S, *, to_the_end: bool = False
    ) -> None:
        """Move bytes to or from the bucket, if there is one, and renew the lease meanwhile.

        Args:
            patience_s: how long the bucket may be away.
            to_the_end: also where the job is to stop.

        Raises:
            _NotCarried; LeaseLost.
        """
        if not self._carrier.is_needed:
            return
        with Errand(transfer, patience_s) as errand:
            try:
                while not errand.done(_POLL_S):
                    self._renew_in_time()
                    if not to_the_end and self._is_to_stop():
                        raise _NotCarried(None)
            except KnownError as error:
                _log.warning("%s", error)
                raise _NotCarried(error_message(error)) from error

    def _keep(self, transfer: Callable[[Check], None]) -> None:
        """Put what there is into the bucket before the attempt ends; without it, the next one has more to do."""
        with suppress(_NotCarried):
            self._carry(transfer, 0, to_the_end=True)

    def _is_to_stop(self) -> bool:
        self._let_go = self._stopping() or self._lease.read(self._repository.stop_requested)
        return self._let_go

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._begun >= self._time_left_s

    def _limit_reached(self) -> dict[str, Any]:
        limit = self._lease.read(self._repository.get).max_seconds
        return error_message(
            KnownError(
                "limit_reached",
                f"the job took longer than limits.max_gpu_seconds, {limit} s",
                "Start it again with a higher limit, fewer forgetting.epochs_per_stage, or fewer evaluation.seeds.",
            )
        )

    def _tidy(self) -> None:
        """Make the folder safe to read, and this user's, after processes that read a stranger's files wrote in it."""
        take_back(self._folder / RUN)
        for home in (self._folder, self._folder / RUN):
            shutil.rmtree(home / TEMPORARY, ignore_errors=True)

    def _relay(self, events: int) -> None:
        """Until the process closes its end, or it is time to stop it."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                if selector.select(_POLL_S):
                    data = os.read(events, 1 << 16)
                    if not data:
                        return
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:  # many at once, and each takes its time where the store is far
                        self._handle(json.loads(line))
                        self._renew_in_time()
                self._renew_in_time()
                if self._is_to_stop():
                    return
                if self._out_of_time():
                    self._outcome = self._limit_reached()
                    return

    def _renew_in_time(self) -> None:
        if self._lease.age >= self._settings.heartbeat_seconds:
            self._lease.renew()

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind in TERMINAL:
            self._outcome = message
        elif kind == "usage":
            usage = {**message, "disk_bytes": folder_bytes(self._folder / RUN)}
            self._lease.write(self._repository.add_event, usage, {"usage": json.dumps(usage)})
        elif kind == "fan_out":
            self._call_helpers(self._job_id, message["shards"])
        elif kind == "status":
            self._lease.write(self._repository.mark_running)
        elif kind == "progress":
            progress = {name: message[name] for name in ("phase", "step", "total", "eta_seconds")}
            self._lease.write(self._repository.add_event, message, {"progress": json.dumps(progress)})
        elif kind == "phase":
            self._enter_phase(message["phase"])
            self._lease.write(self._repository.add_event, message, {"phase": message["phase"]})
        else:
            self._lease.write(self._repository.add_event, message, {})

    def _enter_phase(self, phase: str) -> None:
        """Count the phase that ends herewith; "" where none follows."""
        self._spans.enter(phase or None)
        ended, since = self._phase
        if phase == ended:  # another stage of it
            return
        self._phase = (phase, time.monotonic())
        if ended:
            with suppress(RedisError):  # a figure less
                self._repository.count_phase(ended, time.monotonic() - since)

    def _finish(self, outcome: dict[str, Any] | None) -> bool:
        """Write down how the attempt ended. A job being canceled ends canceled whatever is written."""
        if outcome is None:
            return self._release()
        kind = outcome.pop("type")
        if kind == "result":
            self._enter_phase("")
        status = JobStatus.SUCCEEDED if kind == "result" else JobStatus.FAILED
        if status is JobStatus.FAILED:
            mark_failed(outcome["code"])
        self._keep(self._carrier.keep_log)
        self._lease.write(self._repository.finish, status, outcome)
        return False

    def _release(self) -> bool:
        if self._carrier.is_needed:
            canceled = self._lease.read(self._repository.status) is JobStatus.CANCELING
            self._keep(self._carrier.keep_log if canceled else self._carrier.keep_stages)
        status = self._lease.write(self._repository.release, attempt_counts=not (self._let_go or self._stopping()))
        return status is JobStatus.QUEUED


_PUBLICATION = ("hub_url", "commit", "pr_url", "publish_error")


def _publication(outcome: dict[str, Any]) -> dict[str, Any]:
    """What became of publishing, as a result keeps it: a failure of it takes nothing from the result itself."""
    kind = outcome.pop("type")
    return outcome if kind == "published" else {"publish_error": outcome}


def _plain(access: HubAccess) -> dict[str, Any]:
    """With the token in the clear, for a pipe to a process of ours."""
    return {"access": {**access.model_dump(mode="json"), "token": access.secret}}
