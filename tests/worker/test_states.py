"""The life of a job: the real Lua script on a real server, against a model of what is legal."""

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from threading import Barrier, Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.jobs.placement import CPU, Capacity
from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobNotFound, JobRepository, LeaseLost, connect
from known_core.errors import KnownError
from tests.worker.conftest import own_server

LEASE_S = 60.0
MAX_ATTEMPTS = 3


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
        self.pausing = self.deleting = False
        self.spent_ms = 0

    @property
    def held(self) -> bool:
        return self.republishing or self.status in (JobStatus.VALIDATING, JobStatus.RUNNING, JobStatus.CANCELING)

    def _may(self, fence: int) -> bool:
        return self.held and self.alive and fence == self.fences[-1]

    @initialize(begun=st.booleans())
    def begin(self, begun: bool) -> None:
        """Half of the lives begin in the middle, where most can happen."""
        if begun:
            self.claim()

    @rule()
    def claim(self) -> None:
        fence = self.repository.claim(self.job, "owner", LEASE_S, MAX_ATTEMPTS)
        if (
            self.status is JobStatus.PAUSED
            or (self.status.terminal and not self.republishing)
            or (self.held and self.alive)
        ):
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
        elif self.pausing:
            assert fence is None
            self.status, self.pausing = JobStatus.PAUSED, False
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
        if self.deleting:
            with pytest.raises(JobNotFound):
                self.repository.republish(self.job, {"hub": {}}, "sealed")
        elif self.status is not JobStatus.SUCCEEDED:
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
            waits = self.status in (JobStatus.QUEUED, JobStatus.PAUSED)
            self.status = JobStatus.CANCELED if waits else JobStatus.CANCELING
            self.pausing = False
            assert answer is self.status

    @rule()
    def pause(self) -> None:
        if self.status.terminal or self.status is JobStatus.CANCELING:
            with pytest.raises(KnownError, match="job_ended"):
                self.repository.pause(self.job)
            return
        if self.status is JobStatus.QUEUED:
            self.status = JobStatus.PAUSED
        elif self.status is not JobStatus.PAUSED:
            self.pausing = True
        assert self.repository.pause(self.job) is self.status

    @rule()
    def resume(self) -> None:
        if self.status is JobStatus.PAUSED:
            self.status = JobStatus.QUEUED
        elif not self.pausing:
            code = "job_ended" if self.status.terminal else "job_not_paused"
            with pytest.raises(KnownError, match=code):
                self.repository.resume(self.job)
            return
        self.pausing = False
        assert self.repository.resume(self.job) is self.status

    @rule(after_ms=st.sampled_from([-1, 30_000]))
    def look_again(self, after_ms: int) -> None:
        """What the reaper does with an open job; one that moved on meanwhile is not opened again."""
        self.repository.look_again(self.job, after_ms)

    @rule()
    def begin_delete(self) -> None:
        allowed = self.status.terminal and not self.republishing
        assert self.repository.begin_delete(self.job) == allowed
        self.deleting = self.deleting or allowed

    @precondition(lambda self: self.deleting or not self.status.terminal or self.republishing)
    @rule()
    def delete(self) -> None:
        """After it, the machine lives on with a new job."""
        allowed = self.status.terminal and not self.republishing
        assert self.repository.delete(self.job) == allowed
        if not allowed:
            return
        for ask in (self.repository.get, self.repository.pause, self.repository.resume, self.repository.cancel):
            with pytest.raises(JobNotFound):
                ask(self.job)
        assert self.job not in self.repository.ended_for(-1000)
        assert self.job not in _all_ids(self.repository, "local", None)
        self.__init__()  # type: ignore[misc]

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(self.fences))
        action = data.draw(st.sampled_from(["heartbeat", "event", "run", "succeed", "fail", "release"]))
        counts = data.draw(st.booleans())
        allowed = self._may(fence) and not (self.republishing and action in ("succeed", "fail"))
        try:
            if action == "heartbeat":
                self.repository.heartbeat(self.job, fence, LEASE_S)
            elif action == "event":
                self.repository.add_event(self.job, fence, {"type": "metric"}, {"phase": "forgetting"})
            elif action == "run":
                self.repository.mark_running(self.job, fence)
            elif action == "release":
                self.repository.release(self.job, fence, attempt_counts=counts)
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
                self.republish_attempts -= not counts
            return
        if action == "run" and self.status is JobStatus.VALIDATING:
            self.status = JobStatus.RUNNING
        elif action in ("succeed", "fail", "release"):
            canceled = self.status is JobStatus.CANCELING
            released = JobStatus.PAUSED if self.pausing else JobStatus.QUEUED
            wanted = {"succeed": JobStatus.SUCCEEDED, "fail": JobStatus.FAILED, "release": released}[action]
            self.status = JobStatus.CANCELED if canceled else wanted
            self.alive = self.pausing = False
            if action == "release" and not counts and not canceled:
                self.attempts -= 1

    @invariant()
    def the_record_is_the_model(self) -> None:
        job = self.repository.get(self.job)
        assert job.status is self.status
        listed = [status for status in JobStatus if self.job in _all_ids(self.repository, "local", status)]
        assert listed == [self.status]
        assert job.attempts == self.attempts
        assert (job.republish is not None) == self.republishing
        assert job.pausing == self.pausing
        owner_is_to_stop = self.pausing or self.status is JobStatus.CANCELING
        assert self.repository.stop_requested(self.job) == owner_is_to_stop
        known = self.repository._redis.hgetall(f"known:job:{self.job}")
        running = self.held and not self.republishing
        assert ("claimed_at" in known) == running  # what is charged for
        assert job.spent_ms >= self.spent_ms
        assert job.spent_ms == self.spent_ms or not running or self.attempts > 1
        self.spent_ms = job.spent_ms
        is_open = self.repository._redis.zscore("known:jobs:open", self.job) is not None
        assert is_open == (self.republishing or not (self.status.terminal or self.status is JobStatus.PAUSED))
        assert (self.job in self.repository.ended_for(-1000)) == self.status.terminal
        assert (self.job in self.repository.ended_for(inf)) == self.deleting
        if not (self.held or self.republishing):
            assert not {"owner", "lease_until", "phase"} & known.keys()
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
    with own_server() as repository:

        def several(tenant: str, count: int) -> list[str]:
            made = []
            for _ in range(count):
                made.append(_create(repository, tenant))
                time.sleep(0.002)  # created in another millisecond
            return made

        def next_job(max_running: int, woken_for: str = "") -> str | None:
            return repository.next(Capacity((CPU,)), max_running, woken_for).job_id

        flood = several("flood", 4)
        assert next_job(0, flood[3]) == flood[0]
        assert repository.claim(flood[0], "owner", LEASE_S, MAX_ATTEMPTS) is not None
        drop = several("drop", 2)
        assert next_job(0) == drop[0]
        assert repository.claim(drop[0], "owner", LEASE_S, MAX_ATTEMPTS) is not None
        assert next_job(0) == flood[1]
        assert next_job(1) is None
        assert repository.claim(flood[1], "owner", LEASE_S, MAX_ATTEMPTS, 1) is None
        fence = repository.claim(flood[1], "owner", LEASE_S, MAX_ATTEMPTS, 2)
        assert fence is not None
        repository.mark_running(flood[1], fence)
        assert next_job(0) == drop[1]
        assert next_job(2) == drop[1]
        repository.cancel(drop[1])
        assert next_job(2) is None
        repository.finish(flood[1], fence, JobStatus.SUCCEEDED, {})
        assert next_job(2) == flood[2]
        assert next_job(2, flood[1]) == flood[2]  # it is done with: whose turn it is all the same
        dead = repository.claim(flood[2], "owner", 0.001, MAX_ATTEMPTS)
        assert dead is not None
        time.sleep(0.01)
        assert next_job(1, flood[2]) == flood[2]  # its worker died: it waits for no turn, and does not count twice
        assert repository.claim(flood[2], "owner", LEASE_S, MAX_ATTEMPTS, 1) is not None


def test_no_more_jobs_wait_than_a_tenant_may_have(repository: JobRepository) -> None:
    fields: dict[str, Any] = {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}}
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: repository.create(new_job_id(), "full", fields, max_queued=7), range(40)))
    assert sum(made) == 7
    waiting = _all_ids(repository, "full", None)
    assert len(waiting) == 7
    repository.pause(waiting[0])  # it waits still
    assert not repository.create(new_job_id(), "full", fields, max_queued=7)
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
    repository.cancel(job_id)
    repository.create(job_id, "local", {"request": {}})
    assert json.dumps(repository.get(job_id).request) == "{}"


def test_time_is_charged_for_until_an_attempt_ends_or_its_lease_did(repository: JobRepository) -> None:
    job_id = _create(repository)
    fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
    assert fence is not None
    time.sleep(0.05)
    assert repository.get(job_id).spent_ms == 0
    repository.release(job_id, fence, attempt_counts=True)
    released = repository.get(job_id).spent_ms
    assert released >= 50
    time.sleep(0.05)  # in the queue: free
    fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
    assert fence is not None
    assert repository.get(job_id).spent_ms == released
    repository.heartbeat(job_id, fence, 0.001)
    time.sleep(0.3)  # dead: free
    assert repository.claim(job_id, "other", LEASE_S, MAX_ATTEMPTS) is not None
    assert released <= repository.get(job_id).spent_ms < released + 300
    repository.cancel(job_id)


def test_jobs_are_found_by_the_time_they_ended(repository: JobRepository) -> None:
    job_id, other = _create(repository), _create(repository)
    repository.cancel(job_id)
    assert repository.ended_at([job_id, other, "job_nowhere"]) == [repository.get(job_id).finished_at, None, 0]
    time.sleep(0.02)
    assert job_id in repository.ended_for(10)
    assert not {job_id, other} & set(repository.ended_for(60_000))
    assert repository.begin_delete(job_id)
    assert job_id in repository.ended_for(inf), "a deletion that was cut short is found whatever the retention"
    assert repository.delete(job_id)
    assert job_id not in repository.ended_for(-1000)


@pytest.mark.parametrize("seed", range(6))
def test_many_at_once_leave_one_life(repository: JobRepository, seed: int) -> None:
    """Real connections call everything at once; each job's record and events tell one legal story afterwards."""
    jobs = [_create(repository, "race") for _ in range(4)]
    url = f"redis://127.0.0.1:{repository._redis.connection_pool.connection_kwargs['port']}/0"
    fences: dict[str, list[int]] = {job_id: [] for job_id in jobs}
    finished: dict[str, list[int]] = {job_id: [] for job_id in jobs}  # by which fences, as the callers were told
    failures: list[BaseException] = []
    barrier = Barrier(8)

    def act(number: int) -> None:
        own, chance = JobRepository(connect(url)), random.Random(1000 * seed + number)
        barrier.wait()
        for turn in range(150):
            job_id = chance.choice(jobs)
            often = ["claim"] * 6 + ["release"] * 4 + ["pause", "resume", "resume", "lapse"]
            action = chance.choice(["finish", "cancel"] if turn > 100 and chance.random() < 0.1 else often)
            with suppress(LeaseLost, KnownError):
                if action == "claim":
                    fence = own.claim(job_id, f"owner {number}", LEASE_S, 10**6)
                    if fence is not None:
                        fences[job_id].append(fence)
                        own.mark_running(job_id, fence)
                elif action in ("pause", "resume", "cancel"):
                    getattr(own, action)(job_id)
                elif fences[job_id]:
                    fence = chance.choice(fences[job_id][-2:])
                    if action == "finish":
                        if own.finish(job_id, fence, JobStatus.SUCCEEDED, {"by": fence}) is JobStatus.SUCCEEDED:
                            finished[job_id].append(fence)
                    elif action == "release":
                        own.release(job_id, fence, attempt_counts=chance.random() < 0.5)
                    else:
                        own.heartbeat(job_id, fence, 0.001)

    def guarded(number: int) -> None:
        try:
            act(number)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=guarded, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(map(len, fences.values())) > 40, "the threads hardly met"
    for job_id in jobs:
        _one_story(repository, job_id, fences[job_id], finished[job_id])


_LEGAL = {
    None: {"queued"},
    "queued": {"validating", "paused", "canceled"},
    "validating": {"validating", "running", "queued", "paused", "canceling", "succeeded"},
    "running": {"validating", "queued", "paused", "canceling", "succeeded"},
    "paused": {"queued", "canceled"},
    "canceling": {"canceled"},
}


def _one_story(repository: JobRepository, job_id: str, fences: list[int], finished: list[int]) -> None:
    assert max(Counter(fences).values(), default=1) == 1, "two owners got one fence"
    job, last = repository.get(job_id), None
    statuses = [e.data["status"] for e in repository.events(job_id, "0", 10_000) if e.data["type"] == "status"]
    for status in statuses:
        assert status in _LEGAL.get(last, set()), f"{last} -> {status}"
        last = status
    assert last == job.status
    assert statuses.count("validating") == len(fences)
    assert len(finished) == (job.status is JobStatus.SUCCEEDED) == (job.result is not None)
    if finished:
        assert job.result == {"by": finished[0]}
    assert [s for s in JobStatus if job_id in _all_ids(repository, "race", s)] == [job.status]
    assert (job_id in repository.ended_for(-1000)) == job.status.terminal
    assert job.attempts <= len(fences)


def _claimed(repository: JobRepository) -> tuple[str, int]:
    job_id = _create(repository)
    fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS)
    assert fence is not None
    return job_id, fence


def _die(repository: JobRepository, job_id: str, fence: int) -> None:
    repository.heartbeat(job_id, fence, 0.001)
    time.sleep(0.005)


@pytest.mark.parametrize("end", ["released", "died"])
def test_a_running_job_is_paused_once_it_is_let_go(repository: JobRepository, end: str) -> None:
    job_id, fence = _claimed(repository)
    assert repository.pause(job_id) is repository.pause(job_id) is JobStatus.VALIDATING
    assert repository.get(job_id).pausing
    if end == "released":
        assert repository.release(job_id, fence, attempt_counts=False) is JobStatus.PAUSED
    else:
        _die(repository, job_id, fence)
        assert job_id in repository.overdue()  # the reaper wakes it, and who claims it finds the wish
        assert repository.claim(job_id, "other", LEASE_S, MAX_ATTEMPTS) is None
    job = repository.get(job_id)
    assert (job.status, job.pausing, job.attempts) == (JobStatus.PAUSED, False, 0 if end == "released" else 1)
    assert repository.secret(job_id) == "sealed"
    repository.look_again(job_id, -1)
    assert job_id not in repository.overdue()
    with pytest.raises(LeaseLost):
        repository.heartbeat(job_id, fence, LEASE_S)
    assert repository.pause(job_id) is JobStatus.PAUSED
    assert repository.resume(job_id) is JobStatus.QUEUED
    with pytest.raises(KnownError, match="job_not_paused"):
        repository.resume(job_id)
    assert (repository.claim(job_id, "other", LEASE_S, MAX_ATTEMPTS) or 0) > fence
    repository.cancel(job_id)


def test_a_pause_is_withdrawn_by_resuming_and_overruled_by_cancel_and_by_the_end(repository: JobRepository) -> None:
    job_id, fence = _claimed(repository)
    repository.pause(job_id)
    assert repository.resume(job_id) is JobStatus.VALIDATING
    assert not repository.stop_requested(job_id)
    assert repository.release(job_id, fence, attempt_counts=False) is JobStatus.QUEUED
    types = [event.data["type"] for event in repository.events(job_id, "0", 100)]
    assert types == ["status", "status", "pause", "pause", "status"]
    repository.cancel(job_id)

    job_id, fence = _claimed(repository)
    repository.pause(job_id)
    assert repository.cancel(job_id) is JobStatus.CANCELING
    assert not repository.get(job_id).pausing
    with pytest.raises(KnownError, match=r"it is canceling \(job_ended\)"):
        repository.pause(job_id)
    assert repository.release(job_id, fence, attempt_counts=False) is JobStatus.CANCELED

    job_id, fence = _claimed(repository)
    repository.pause(job_id)
    assert repository.finish(job_id, fence, JobStatus.SUCCEEDED, {}) is JobStatus.SUCCEEDED
    assert not repository.get(job_id).pausing
    with pytest.raises(KnownError, match="job_ended"):
        repository.resume(job_id)


def test_a_job_being_deleted_is_not_published_again_and_one_being_published_is_not_deleted(
    repository: JobRepository,
) -> None:
    job_id, fence = _claimed(repository)
    assert not repository.begin_delete(job_id)
    repository.finish(job_id, fence, JobStatus.SUCCEEDED, {})
    assert repository.republish(job_id, {}, None)
    assert not repository.begin_delete(job_id)
    fence = repository.claim(job_id, "owner", LEASE_S, MAX_ATTEMPTS) or 0
    repository.republished(job_id, fence, {})
    assert repository.begin_delete(job_id)
    with pytest.raises(JobNotFound):
        repository.republish(job_id, {}, None)
    assert repository.delete(job_id)
