"""Job records in Redis or Valkey. Every change goes through states.lua; the rest only reads."""

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from threading import Event, Thread
from typing import Any, cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app.jobs.migrations import JOB_STEPS
from app.jobs.placement import CPU, GPU, Capacity, Needs, Queue, largest_gpu, list_key
from app.jobs.record import Job, JobEvent, JobStatus, parse_event, parse_job
from known_core.errors import KnownError
from known_core.files import sha256_bytes
from known_core.schema import SCHEMA, forward, newest

_OPEN = "known:jobs:open"
_ENDED = "known:jobs:ended"  # id -> when, ms; 0: its deletion has begun
_STORE = "known:store"
_WORKERS = "known:workers"  # name -> until when it is taken to live, ms
_WORKER = "known:worker:"
TENANTS = "known:tenants"
_TURNS = "known:turns"
COUNTERS = "known:counters"  # a hash; what names its fields, and its labels, have spaces between them
PHASE_BUCKETS_S = (1, 5, 15, 60, 300, 900, 3600, 14400)
CHANGES = "known:changes"  # the channel that says which job has a new event
REQUEUE_GRACE_MS = 30_000  # a queued job not claimed for this long gets another wake-up
PATIENCE_MS = 600_000  # a job that waits for memory of a GPU is passed over for so long; then the GPU is kept for it
_UPLOAD_ID = re.compile(r'"(upl_[0-9a-f]{24})"')
_IN_FLIGHT_S = 30  # an idempotency key is free so long after a crash
_KEPT_S = 48 * 3600  # how long a key stands for its job


class LeaseLost(Exception):
    """The caller no longer owns the job: another worker may have it. Nothing was written."""


class JobNotFound(KnownError):
    def __init__(self, job_id: str) -> None:
        super().__init__("job_not_found", f"there is no job {job_id[:80]!r}", "List them: GET /v1/jobs.")


def connect(url: str, *, timeout_s: float = 30, tries: int = 11) -> Redis:
    """A client with bounded waits that reconnects: a restart of the server is not an error of the job.

    Args:
        timeout_s: for one answer.
        tries: of a call, before its error is raised.
    """
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, 5),
        health_check_interval=25,
        retry=Retry(ExponentialBackoff(cap=2, base=0.05), retries=tries - 1),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    return client


def events_key(job_id: str) -> str:
    """The stream of a job's events."""
    return f"known:job:{job_id}:events"


def jobs_key(tenant: str, status: JobStatus | None = None) -> str:
    """The tenant's jobs by age: all, or those in a state."""
    return f"known:tenant:{tenant}:jobs" + (f":{status.value}" if status else "")


def _idempotency_key(tenant: str, key: str) -> str:
    return f"known:tenant:{tenant}:idempotency:{sha256_bytes(key.encode())}"  # hashed: a stranger chose its bytes


@dataclass(frozen=True)
class Reservation:
    """What an idempotency key stands for. ``made`` is whether its job is (or was) there."""

    fingerprint: str
    job_id: str
    made: bool


@dataclass(frozen=True)
class Choice:
    """What a worker is to run, if anything, and a job that waits and which only another worker can take."""

    job_id: str | None
    passed_over: str | None


class JobRepository:
    """The only reader and writer of job records."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # redis-py types every answer as bytes | str | list | None
        self._script = redis.register_script(files("app.jobs").joinpath("states.lua").read_text())
        self._next = redis.register_script(files("app.jobs").joinpath("next.lua").read_text())

    def _call(self, operation: str, job_id: str, *arguments: str | int) -> list[Any]:
        keys = [f"known:job:{job_id}", events_key(job_id), _OPEN]
        answer = cast(list[Any], self._script(keys=keys, args=[operation, job_id, *arguments]))
        if answer[0] == "missing":
            raise JobNotFound(job_id)
        return answer

    def create(
        self, job_id: str, tenant: str, fields: Mapping[str, Any], secret: str | None = None, max_queued: int = 0
    ) -> bool:
        """Record a job.

        Args:
            tenant: whose it is.
            fields: request, spec, hub, resolved, metadata; kept as JSON.
            secret: the sealed token of the request, where it brought one.
            max_queued: the most jobs of the tenant that may wait; 0: any number.

        Returns:
            False where so many wait already; nothing is recorded then.
        """
        pairs = [item for name, value in fields.items() for item in (name, json.dumps(value))]
        pairs += ["secret", secret] if secret else []
        pairs += [SCHEMA, str(newest(JOB_STEPS))]
        answer = self._call("create", job_id, REQUEUE_GRACE_MS, max_queued, "tenant", tenant, *pairs)
        return bool(answer[0] != "full")  # or it exists: the call was repeated

    def reserve(self, tenant: str, key: str, fingerprint: str, job_id: str) -> "Reservation | None":
        """Say that a request with an idempotency key is being answered by making ``job_id``.

        Args:
            fingerprint: of the request's body.

        Returns:
            None where the key is new (or this very call is repeated); else that of whoever came first.
        """
        mine = f"{fingerprint} {job_id}"
        there = self._redis.set(_idempotency_key(tenant, key), mine, nx=True, get=True, ex=_IN_FLIGHT_S)
        if there in (None, mine):
            return None
        first, first_id, *made = str(there).split()
        return Reservation(first, first_id, made=bool(made) or bool(self._redis.exists(f"known:job:{first_id}")))

    @contextmanager
    def holding_reservation(self, tenant: str, key: str) -> Iterator[None]:
        """A block in which the job is made, however long that takes; where this process dies in it, the key is free
        soon after."""
        done = Event()

        def hold() -> None:
            while not done.wait(_IN_FLIGHT_S / 3):
                with suppress(RedisError):
                    self._redis.expire(_idempotency_key(tenant, key), _IN_FLIGHT_S)

        thread = Thread(target=hold, name="idempotency-key", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def keep_reservation(self, tenant: str, key: str, fingerprint: str, job_id: str) -> None:
        """The job is made: its key stands for it from now on, also when it is deleted."""
        self._redis.set(_idempotency_key(tenant, key), f"{fingerprint} {job_id} made", ex=_KEPT_S)

    def drop_reservation(self, tenant: str, key: str) -> None:
        """No job was made: the key may be used again."""
        self._redis.delete(_idempotency_key(tenant, key))

    def exists(self, job_id: str) -> bool:
        return bool(self._redis.exists(f"known:job:{job_id}"))

    def claim(self, job_id: str, owner: str, lease_s: float, max_attempts: int, max_running: int = 0) -> int | None:
        """Take a job that nobody holds.

        Args:
            max_running: the most jobs of a tenant that run at once; 0: any number.

        Returns:
            The fence to show with every write, or None when there is nothing to take: it is held, done, its tenant is
            at that limit, or it has used up its attempts (it then fails with ``worker_died``).

        Raises:
            RecordTooNew: a newer release wrote it; nothing has changed.
        """
        said = self._redis.hget(f"known:job:{job_id}", SCHEMA)
        forward({SCHEMA: said} if said else {}, JOB_STEPS, f"record of the job {job_id}")
        error = {
            "code": "worker_died",
            "message": f"the job's process died {max_attempts} times without saying why",
            "hint": "Most often memory: lower forgetting.batch_size. See GET /v1/jobs/{id}/logs.",
            "retryable": False,
        }
        answer = self._call("claim", job_id, owner, int(lease_s * 1000), max_attempts, json.dumps(error), max_running)
        return int(answer[1]) if answer[0] == "ok" else None

    def begin_delete(self, job_id: str) -> bool:
        """From here on a job can only be deleted. Returns: False while it runs or is being published."""
        return bool(self._call("begin_delete", job_id)[0] == "ok")

    def next(self, worker: Capacity, max_running: int, job_id: str = "") -> Choice:
        """What a worker is to run: of what it can take, the oldest job of the tenant with the fewest running.

        Args:
            max_running: the most jobs of a tenant that run at once; 0: any number.
            job_id: the job that woke it; that one where it does not wait for its turn.
        """
        gpu = worker.gpu_memory_bytes if GPU in worker.queues else -1
        arguments = [max_running, gpu, worker.gpu_free_bytes, int(CPU in worker.queues), largest_gpu(self.capacities())]
        chosen, passed_over = self._next(keys=[TENANTS, _TURNS], args=[*arguments, PATIENCE_MS, job_id])
        return Choice(chosen or None, passed_over or None)

    def needs(self, job_id: str) -> Needs:
        """What a job needs of a worker. Raises: JobNotFound."""
        found, needs = self._redis.hmget(f"known:job:{job_id}", "id", "needs")
        if found is None:
            raise JobNotFound(job_id)
        return Needs(**json.loads(needs or "{}"))

    def wait_for(self, job_id: str, what: str | None) -> None:
        """Say, once, what a job that nobody has waits for and no living worker has; None: nothing."""
        with suppress(JobNotFound):  # deleted meanwhile
            self._call("wait", job_id, what or "")

    def wake_ups(self, queue: Queue) -> int:
        """How many messages lie in a queue."""
        length: int = self._redis.llen(list_key(queue))
        return length

    def clear(self, queue: Queue) -> None:
        """Forget the messages of a queue; a reaper sends again what a job should have needed."""
        self._redis.delete(list_key(queue))

    def delete(self, job_id: str) -> bool:
        """Forget a job and its events. Returns: False while it runs or is being published."""
        return bool(self._call("delete", job_id)[0] == "ok")

    def republish(self, job_id: str, target: Mapping[str, Any], secret: str | None) -> bool:
        """Ask for a job's result to be published (again).

        Args:
            secret: the sealed token of the request, where it brought one.

        Returns:
            False while an earlier request is not done with.

        Raises:
            KnownError: ``result_not_ready`` for a job that has not succeeded.
        """
        answer = self._call("republish", job_id, REQUEUE_GRACE_MS, json.dumps(target), secret or "")
        if answer[0] == "unfinished":
            raise KnownError("result_not_ready", f"the job {job_id} has not succeeded", "Wait for it, or look why.")
        return bool(answer[0] == "ok")

    def republished(self, job_id: str, fence: int, result: Mapping[str, Any]) -> None:
        """End a republishing; the result says what became of it."""
        self._owner_call("republished", job_id, fence, json.dumps(result))

    def secret(self, job_id: str) -> str | None:
        """The sealed token that came with a job's request, until the job has ended."""
        sealed: str | None = self._redis.hget(f"known:job:{job_id}", "secret")
        return sealed

    def cancel(self, job_id: str) -> JobStatus | None:
        """Returns: the state the job is in now, or None when it had ended already."""
        answer = self._call("cancel", job_id)
        return JobStatus(answer[1]) if answer[0] == "ok" else None

    def pause(self, job_id: str) -> JobStatus:
        """Pause a job: at once where it waits, else once its worker has let it go.

        Returns:
            The state it is in now.

        Raises:
            KnownError: ``job_ended`` where it has, or is being canceled.
        """
        answer = self._call("pause", job_id)
        if answer[0] != "ok":
            raise self._ended(job_id)
        return JobStatus(answer[1])

    def resume(self, job_id: str) -> JobStatus:
        """Queue a paused job again, or withdraw a pause that was only asked for.

        Returns:
            The state it is in now.

        Raises:
            KnownError: ``job_ended``, or ``job_not_paused``.
        """
        answer = self._call("resume", job_id, REQUEUE_GRACE_MS)
        if answer[0] == "terminal":
            raise self._ended(job_id)
        if answer[0] != "ok":
            status = self.status(job_id)
            raise KnownError(
                "job_not_paused", f"the job is {status.value}, not paused", "Look at it: GET /v1/jobs/{id}."
            )
        return JobStatus(answer[1])

    def _ended(self, job_id: str) -> KnownError:
        status = self.status(job_id)
        return KnownError("job_ended", f"the job has ended or is about to: it is {status.value}", "Start a new one.")

    def look_again(self, job_id: str, after_ms: int) -> None:
        """Put off the reaper's next look at an open job."""
        self._call("look_again", job_id, after_ms)

    def heartbeat(self, job_id: str, fence: int, lease_s: float) -> None:
        self._owner_call("heartbeat", job_id, fence, int(lease_s * 1000))

    def add_event(self, job_id: str, fence: int, event: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        """Append an event and set fields of the record with it."""
        pairs = [item for pair in fields.items() for item in pair]
        self._owner_call("event", job_id, fence, json.dumps(event), *pairs)

    def mark_running(self, job_id: str, fence: int) -> None:
        self._owner_call("run", job_id, fence)

    def count_phase(self, phase: str, seconds: float) -> None:
        """Count a phase that has ended, for the metrics."""
        bound = next((bound for bound in PHASE_BUCKETS_S if seconds <= bound), float("inf"))
        pipe = self._redis.pipeline(transaction=False)
        pipe.hincrby(COUNTERS, f"phase {phase} {bound:g}", 1)
        pipe.hincrbyfloat(COUNTERS, f"phase {phase} sum", round(seconds, 3))
        pipe.execute()

    def finish(self, job_id: str, fence: int, status: JobStatus, outcome: Mapping[str, Any]) -> JobStatus:
        """End a job with its result or error; a job being canceled ends canceled."""
        field = "result" if status is JobStatus.SUCCEEDED else "error"
        return self._owner_call("finish", job_id, fence, status.value, field, json.dumps(outcome))

    def release(self, job_id: str, fence: int, *, attempt_counts: bool) -> JobStatus:
        """Give a job back to the queue."""
        return self._owner_call("release", job_id, fence, REQUEUE_GRACE_MS, "0" if attempt_counts else "1")

    def _owner_call(self, operation: str, job_id: str, fence: int, *arguments: str | int) -> JobStatus:
        answer = self._call(operation, job_id, fence, *arguments)
        if answer[0] != "ok":
            raise LeaseLost(f"{job_id}: {operation} refused, {answer[0]}")
        return JobStatus(answer[1])

    def get(self, job_id: str) -> Job:
        """Raises: JobNotFound."""
        job = self.find(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    def find(self, job_id: str) -> Job | None:
        """The job, or None where it is not there (any more)."""
        fields = self._redis.hgetall(f"known:job:{job_id}")
        return parse_job(fields) if fields else None

    def stop_requested(self, job_id: str) -> bool:
        """Whether the owner of a job is to stop, because it is canceled or paused. Raises: JobNotFound."""
        status, pause = self._redis.hmget(f"known:job:{job_id}", "status", "pause_requested")
        if status is None:
            raise JobNotFound(job_id)
        return pause is not None or status == JobStatus.CANCELING

    def status(self, job_id: str) -> JobStatus:
        value = self._redis.hget(f"known:job:{job_id}", "status")
        if value is None:
            raise JobNotFound(job_id)
        return JobStatus(value)

    def page(self, tenant: str, after: str | None, limit: int, status: JobStatus | None) -> tuple[list[Job], bool]:
        """A tenant's jobs, newest first.

        Returns:
            At most ``limit`` jobs that come after the job ``after``, and whether more follow.
        """
        key = jobs_key(tenant, status)
        start = 0 if after is None else self._rank_after(tenant, key, after)
        ids = self._redis.zrevrange(key, start, start + limit)
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids[:limit]:
            pipe.hgetall(f"known:job:{job_id}")
        jobs = [parse_job(fields) for fields in pipe.execute() if fields]  # one may be deleted, or move on, meanwhile
        return [job for job in jobs if status in (None, job.status)], len(ids) > limit

    def _rank_after(self, tenant: str, key: str, job_id: str) -> int:
        """Where in ``key``, newest first, the jobs begin that come after one which need not be in it."""
        created_at = self._redis.zscore(jobs_key(tenant), job_id)
        if created_at is None:
            raise JobNotFound(job_id)
        same_time: list[str] = self._redis.zrangebyscore(key, created_at, created_at)  # in the order of their ids
        newer: int = self._redis.zcount(key, f"({created_at}", "+inf")
        return newer + sum(other >= job_id for other in same_time)

    def events(self, job_id: str, after: str, limit: int) -> list[JobEvent]:
        """Events that come after the stream id ``after`` ("0" is the start)."""
        entries = self._redis.xrange(events_key(job_id), min=f"({after}", count=limit)
        return [parse_event(entry_id, fields) for entry_id, fields in entries]

    def overdue(self) -> list[str]:
        """Open jobs that it is time to look at: their lease has run out, or nobody has claimed them."""
        overdue: list[str] = self._redis.zrangebyscore(_OPEN, 0, self._now())
        return overdue

    def queued(self) -> list[str]:
        """Jobs that wait, of every tenant."""
        pipe = self._redis.pipeline(transaction=False)
        for tenant in self._redis.smembers(TENANTS):
            pipe.zrange(jobs_key(tenant, JobStatus.QUEUED), 0, -1)
        return [job_id for found in pipe.execute() for job_id in found]

    def queued_needs(self) -> list[Needs]:
        """What each of them needs of a worker."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in self.queued():
            pipe.hget(f"known:job:{job_id}", "needs")
        return [Needs(**json.loads(needs or "{}")) for needs in pipe.execute()]

    def uploads_in_use(self, tenant: str) -> set[str]:
        """The ids of uploads that the tenant's jobs which have not ended were given."""
        pipe = self._redis.pipeline(transaction=False)
        for status in JobStatus:
            if not status.terminal:
                for job_id in self._redis.zrange(jobs_key(tenant, status), 0, -1):
                    pipe.hget(f"known:job:{job_id}", "request")
        return {upload_id for request in pipe.execute() if request for upload_id in _UPLOAD_ID.findall(request)}

    def ended_for(self, milliseconds: float) -> list[str]:
        """Jobs that ended so long ago (infinity: none), and those whose deletion was begun and cut short."""
        ids: list[str] = self._redis.zrangebyscore(_ENDED, 0, max(0, self._now() - milliseconds))
        return ids

    def ended_at(self, job_ids: list[str]) -> list[int | None]:
        """When each job ended, ms; None where it has not, 0 where it is not there."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(f"known:job:{job_id}", "id", "finished_at")
        return [0 if found is None else finished and int(finished) for found, finished in pipe.execute()]

    def store_id(self) -> str:
        """What this store is told from another one by; made by whoever asks first."""
        mine = secrets.token_hex(8)
        return str(self._redis.set(_STORE, mine, nx=True, get=True) or mine)

    def _now(self) -> int:
        seconds, micros = self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    def ping(self) -> None:
        self._redis.ping()

    def worker_alive(self, name: str, seconds: int, facts: Mapping[str, Any] | None = None) -> None:
        """Let it be known for some seconds that a worker runs, on what, and which queues it serves."""
        now = self._now()
        pipe = self._redis.pipeline()
        pipe.set(f"{_WORKER}{name}", json.dumps(facts or {}), ex=seconds)
        pipe.zadd(_WORKERS, {name: now + seconds * 1000})
        pipe.zremrangebyscore(_WORKERS, 0, now)
        pipe.execute()

    def worker_left(self, name: str) -> None:
        """A worker takes no more jobs: what waits for one like it is to be said at once."""
        pipe = self._redis.pipeline()
        pipe.delete(f"{_WORKER}{name}")
        pipe.zrem(_WORKERS, name)
        pipe.execute()

    def workers(self) -> list[str]:
        """The names of those that said within their time that they run."""
        names: list[str] = self._redis.zrangebyscore(_WORKERS, self._now(), "+inf")
        return sorted(names)

    def worker_facts(self) -> dict[str, dict[str, Any]]:
        """What each of them said of itself, by name."""
        names = self.workers()
        said = self._redis.mget([f"{_WORKER}{name}" for name in names]) if names else []
        return {name: json.loads(text) for name, text in zip(names, said, strict=True) if text}

    def capacities(self) -> list[Capacity]:
        """What each of them offers."""
        return [Capacity.of(facts) for facts in self.worker_facts().values()]
