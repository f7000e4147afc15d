"""The life of a job: the real Lua script on a real server, against a model of what is legal."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobNotFound, JobRepository, LeaseLost, connect
from known_core.errors import KnownError
from known_core.stack import _free_port, _valkey_binary, _wait_for_port

LEASE_S = 60.0
MAX_ATTEMPTS = 3


@pytest.fixture(scope="module")
def repository() -> Iterator[JobRepository]:
    with _server() as one:
        yield one


@contextmanager
def _server() -> Iterator[JobRepository]:
    """A server of its own."""
    folder, port = Path(tempfile.mkdtemp()), _free_port()
    command = [_valkey_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream)
    try:
        _wait_for_port(port, server, Path(log))
        yield JobRepository(connect(f"redis://127.0.0.1:{port}/0"))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def _create(repository: JobRepository, tenant: str = "local") -> str:
    job_id = new_job_id()
    repository.create(job_id, tenant, {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}}, "sealed")
    return job_id


def _all_ids(repository: JobRepository, tenant: str, status: JobStatus | None, page: int = 100) -> list[str]:
    """Page by page."""
    ids: list[str] = []
    more = True
    while more:
        jobs, more = repository.page(tenant, ids[-1] if ids else None, page, status)
        ids += [job.id for job in jobs]
    return ids


class Life(RuleBasedStateMachine):
    """Several owners, each with the fence it was given, act in any order; leases run out when the rule says so."""

    repository: JobRepository

    def __init__(self) -> None:
        super().__init__()
        self.job = _create(self.repository)
        self.status = JobStatus.QUEUED
        self.fences: list[int] = []
        self.alive = False  # whether the newest fence's lease still runs
        self.attempts = 0
        self.republishing = False
        self.republish_attempts = 0

    @property
    def held(self) -> bool:
        return self.republishing or self.status in (JobStatus.VALIDATING, JobStatus.RUNNING, JobStatus.CANCELING)

    def _may(self, fence: int) -> bool:
        return self.held and self.alive and fence == self.fences[-1]

    @rule()
    def claim(self) -> None:
        fence = self.repository.claim(self.job, "owner", LEASE_S, MAX_ATTEMPTS)
        if (self.status.terminal and not self.republishing) or (self.held and self.alive):
            assert fence is None
        elif self.republishing:
            self.republish_attempts += 1
            if self.republish_attempts > MAX_ATTEMPTS:
                assert fence is None
                self.republishing = False
                result = self.repository.get(self.job).result
                assert result is not None
                assert result["publish_error"]["code"] == "worker_died"
            else:
                assert fence is not None
                assert fence not in self.fences
                self.fences.append(fence)
                self.alive = True
        elif self.status is JobStatus.CANCELING:
            assert fence is None
            self.status = JobStatus.CANCELED
        elif self.attempts >= MAX_ATTEMPTS:
            assert fence is None
            self.status = JobStatus.FAILED
        else:
            assert fence is not None
            assert fence not in self.fences
            self.fences.append(fence)
            self.attempts += 1
            self.alive, self.status = True, JobStatus.VALIDATING

    @rule()
    def republish(self) -> None:
        if self.status is not JobStatus.SUCCEEDED:
            with pytest.raises(KnownError, match="result_not_ready"):
                self.repository.republish(self.job, {"hub": {}}, "sealed")
        elif self.republishing:
            assert not self.repository.republish(self.job, {"hub": {}}, None)
        else:
            assert self.repository.republish(self.job, {"hub": {}}, "sealed")
            self.republishing, self.republish_attempts, self.alive = True, 0, False

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def end_republishing(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(self.fences))
        allowed = self.republishing and self._may(fence)
        try:
            self.repository.republished(self.job, fence, {"by": fence, "hub_url": "there"})
        except LeaseLost:
            assert not allowed
            return
        assert allowed
        self.republishing = self.alive = False

    @precondition(lambda self: self.alive and self.held)
    @rule()
    def lease_runs_out(self) -> None:
        self.repository.heartbeat(self.job, self.fences[-1], 0.001)
        time.sleep(0.005)
        self.alive = False

    @rule()
    def cancel(self) -> None:
        answer = self.repository.cancel(self.job)
        if self.status.terminal:
            assert answer is None
        else:
            self.status = JobStatus.CANCELED if self.status is JobStatus.QUEUED else JobStatus.CANCELING
            assert answer is self.status

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(self.fences))
        action = data.draw(st.sampled_from(["heartbeat", "event", "run", "succeed", "fail", "release"]))
        allowed = self._may(fence) and not (self.republishing and action in ("succeed", "fail"))
        try:
            if action == "heartbeat":
                self.repository.heartbeat(self.job, fence, LEASE_S)
            elif action == "event":
                self.repository.add_event(self.job, fence, {"type": "metric"}, {"phase": "forgetting"})
            elif action == "run":
                self.repository.mark_running(self.job, fence)
            elif action == "release":
                self.repository.release(self.job, fence, attempt_counts=True)
            else:
                self.repository.finish(
                    self.job, fence, JobStatus.SUCCEEDED if action == "succeed" else JobStatus.FAILED, {"by": fence}
                )
        except LeaseLost:
            assert not allowed
            return
        assert allowed
        if self.republishing:
            if action == "release":
                self.alive = False
            return
        if action == "run" and self.status is JobStatus.VALIDATING:
            self.status = JobStatus.RUNNING
        elif action in ("succeed", "fail", "release"):
            canceled = self.status is JobStatus.CANCELING
            wanted = {"succeed": JobStatus.SUCCEEDED, "fail": JobStatus.FAILED, "release": JobStatus.QUEUED}[action]
            self.status = JobStatus.CANCELED if canceled else wanted
            self.alive = False

    @invariant()
    def the_record_is_the_model(self) -> None:
        job = self.repository.get(self.job)
        assert job.status is self.status
        listed = [status for status in JobStatus if self.job in _all_ids(self.repository, "local", status)]
        assert listed == [self.status]
        assert job.attempts == self.attempts
        assert (job.republish is not None) == self.republishing
        if self.status.terminal and not self.republishing:
            assert self.repository.secret(self.job) is None
        assert (job.finished_at is not None) == self.status.terminal
        events = self.repository.events(self.job, "0", 10_000)
        statuses = [event.data["status"] for event in events if event.data["type"] == "status"]
        assert statuses[-1] == self.status
        assert sum(JobStatus(status).terminal for status in statuses) <= 1


def test_only_legal_lives_and_one_owner(repository: JobRepository) -> None:
    class OnThisServer(Life):
        pass

    OnThisServer.repository = repository
    checks = [HealthCheck.too_slow]
    run_state_machine_as_test(
        OnThisServer,
        settings=settings(max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )


def test_pages_hold_every_job_once_by_tenant_and_state(repository: JobRepository) -> None:
    """Many are made within one millisecond; a page may begin after a job that has left the state asked for."""
    made: dict[str, list[str]] = {"many": [], "few": []}
    for index in range(60):
        tenant = "few" if index % 10 == 0 else "many"
        made[tenant].append(_create(repository, tenant))
    canceled = made["many"][::3]
    for job_id in canceled:
        repository.cancel(job_id)
    ids = _all_ids(repository, "many", None, page=7)
    created = [repository.get(job_id).created_at for job_id in ids]
    assert sorted(ids) == sorted(made["many"])
    assert created == sorted(created, reverse=True)
    for page in (1, 7, 100):
        assert sorted(_all_ids(repository, "many", JobStatus.CANCELED, page)) == sorted(canceled)
    assert sorted(_all_ids(repository, "few", JobStatus.QUEUED, 2)) == sorted(made["few"])
    still_queued = [job_id for job_id in ids if job_id not in canceled]
    for job_id in canceled:
        after, _ = repository.page("many", job_id, 100, JobStatus.QUEUED)
        assert [job.id for job in after] == [other for other in still_queued if ids.index(other) > ids.index(job_id)]
    with pytest.raises(JobNotFound):
        repository.page("few", made["many"][0], 10, None)
    repository.delete(canceled[0])
    assert canceled[0] not in _all_ids(repository, "many", None)
    assert canceled[0] not in _all_ids(repository, "many", JobStatus.CANCELED)


def test_turns_are_fair_between_tenants() -> None:
    """One tenant has many jobs waiting: another's first job is next, then they take turns; a limit holds one back."""
    with _server() as repository:

        def several(tenant: str, count: int) -> list[str]:
            made = []
            for _ in range(count):
                made.append(_create(repository, tenant))
                time.sleep(0.002)  # created in another millisecond
            return made

        flood = several("flood", 4)
        assert repository.next_for(flood[3], 0) == flood[0]
        assert repository.claim(flood[0], "owner", LEASE_S, MAX_ATTEMPTS) is not None
        drop = several("drop", 2)
        assert repository.next(0) == drop[0]
        assert repository.claim(drop[0], "owner", LEASE_S, MAX_ATTEMPTS) is not None
        assert repository.next(0) == flood[1]
        assert repository.next(1) is None
        fence = repository.claim(flood[1], "owner", LEASE_S, MAX_ATTEMPTS)
        assert fence is not None
        repository.mark_running(flood[1], fence)
        assert repository.next(0) == drop[1]
        assert repository.next(2) == drop[1]
        repository.cancel(drop[1])
        assert repository.next(2) is None
        repository.finish(flood[1], fence, JobStatus.SUCCEEDED, {})
        assert repository.next(2) == flood[2]
        assert repository.next_for(flood[1], 1) == flood[1]  # it does not wait: a wake-up for it is for it


def test_no_more_jobs_wait_than_a_tenant_may_have(repository: JobRepository) -> None:
    fields: dict[str, Any] = {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}}
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: repository.create(new_job_id(), "full", fields, max_queued=7), range(40)))
    assert sum(made) == 7
    waiting = _all_ids(repository, "full", None)
    assert len(waiting) == 7
    repository.cancel(waiting[0])
    assert repository.create(new_job_id(), "full", fields, max_queued=7)
    assert repository.create(new_job_id(), "roomy", fields, max_queued=7)


def test_a_job_is_overdue_until_claimed_and_after_its_lease(repository: JobRepository) -> None:
    job_id = _create(repository)
    assert job_id not in repository.overdue()
    repository.look_again(job_id, -1)
    assert job_id in repository.overdue()
    fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
    assert fence is not None
    assert job_id not in repository.overdue()
    repository.heartbeat(job_id, fence, 0.001)
    time.sleep(0.005)
    assert job_id in repository.overdue()
    repository.cancel(job_id)
    assert repository.claim(job_id, "other", LEASE_S, MAX_ATTEMPTS) is None
    assert repository.status(job_id) is JobStatus.CANCELED
    assert job_id not in repository.overdue()


def test_a_job_that_dies_too_often_fails_and_says_why(repository: JobRepository) -> None:
    job_id = _create(repository)
    for _ in range(MAX_ATTEMPTS):
        fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
        assert fence is not None
        repository.release(job_id, fence, attempt_counts=True)
    assert repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS) is None
    job = repository.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_died"
    assert "3 times" in job.error["message"]


def test_a_shutdown_does_not_use_up_an_attempt(repository: JobRepository) -> None:
    job_id = _create(repository)
    for _ in range(3 * MAX_ATTEMPTS):
        fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
        assert fence is not None
        repository.release(job_id, fence, attempt_counts=False)
    assert repository.status(job_id) is JobStatus.QUEUED


def test_unknown_jobs_and_repeated_ids(repository: JobRepository) -> None:
    with pytest.raises(JobNotFound, match="job_nowhere"):
        repository.get("job_nowhere")
    with pytest.raises(JobNotFound):
        repository.claim("job_nowhere", "owner", LEASE_S, MAX_ATTEMPTS)
    job_id = _create(repository)
    with pytest.raises(ValueError, match=job_id):
        repository.create(job_id, "local", {"request": {}})
    assert json.dumps(repository.get(job_id).request) == "{}"
