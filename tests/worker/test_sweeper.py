"""What nobody needs any more goes, and nothing else: on a real store, with real folders."""

import os
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from app.jobs.deletion import delete_job
from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobNotFound, JobRepository
from app.uploads.repository import UploadRepository
from known_core.files import link_or_copy
from worker import sweeper
from worker.settings import WorkerSettings
from worker.sweeper import ORPHAN_S, Sweeper, remove_expired, remove_orphans, remove_stages, remove_uploads

_DAY_S = 86_400


@pytest.fixture
def settings(tmp_path: Path, repository: JobRepository) -> WorkerSettings:
    repository._redis.flushall()
    return WorkerSettings(data_dir=tmp_path, job_retention_days=1e-7, work_retention_hours=0)  # 9 ms


def made(repository: JobRepository, settings: WorkerSettings, end: JobStatus | None = JobStatus.SUCCEEDED) -> str:
    """A job, ended where it is said how, and its folder as a run leaves it."""
    job_id = new_job_id()
    repository.create(job_id, "local", {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}})
    fence = repository.claim(job_id, "owner", 60, 3) or 0
    folder = settings.job_folder(job_id)
    (folder / "run" / "work" / "fan-0-abc" / "state").mkdir(parents=True)
    (folder / "run" / "work" / "fan-0-abc" / "state" / "model.safetensors").write_bytes(b"weights")
    (folder / "run" / "cache").mkdir()
    (folder / "log.txt").write_text("attempt 1\n")
    link_or_copy(
        folder / "run/work/fan-0-abc/state/model.safetensors", folder / "run/artifacts/continued/model.safetensors"
    )
    if end is JobStatus.CANCELED:
        repository.cancel(job_id)
        repository.release(job_id, fence, attempt_counts=True)
    elif end is not None:
        repository.finish(job_id, fence, end, {"selected": "continued"})
    return job_id


def test_jobs_past_their_time_are_deleted_with_their_files(repository: JobRepository, settings: WorkerSettings) -> None:
    ended = [
        made(repository, settings, end) for end in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)
    ]  # fmt: skip
    running, publishing = made(repository, settings, None), made(repository, settings)
    assert repository.republish(publishing, {"hub": {}}, None)
    time.sleep(0.02)
    assert remove_expired(repository, settings) == 3
    for job_id in ended:
        assert not settings.job_folder(job_id).exists()
        assert not repository.exists(job_id)
    for job_id in (running, publishing):
        assert (settings.job_folder(job_id) / "run/artifacts/continued/model.safetensors").is_file()
        assert repository.exists(job_id)
    repository.republished(publishing, repository.claim(publishing, "owner", 60, 3) or 0, {})
    assert remove_expired(repository, settings) == 1


def test_nothing_is_deleted_before_its_time_or_where_jobs_are_kept_for_ever(
    repository: JobRepository, settings: WorkerSettings
) -> None:
    job_id = made(repository, settings)
    time.sleep(0.02)
    for days in (0.0, 30.0):
        assert remove_expired(repository, settings.model_copy(update={"job_retention_days": days})) == 0
    assert settings.job_folder(job_id).is_dir()


@pytest.mark.parametrize("days", [0.0, 30.0])
def test_a_deletion_that_was_cut_short_is_finished(
    repository: JobRepository, settings: WorkerSettings, days: float
) -> None:
    job_id = made(repository, settings)
    assert repository.begin_delete(job_id)  # and then the API was killed
    assert remove_expired(repository, settings.model_copy(update={"job_retention_days": days})) == 1
    assert not settings.job_folder(job_id).exists()
    assert not repository.exists(job_id)


def test_several_sweepers_do_no_harm_to_one_another(repository: JobRepository, settings: WorkerSettings) -> None:
    jobs = [made(repository, settings) for _ in range(20)]
    time.sleep(0.02)
    failures: list[BaseException] = []

    def sweep() -> None:
        try:
            remove_expired(repository, settings)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove_expired(repository, settings)  # what two wanted at once may be left by both
    assert [job_id for job_id in jobs if repository.exists(job_id) or settings.job_folder(job_id).exists()] == []
    assert failures == []
    with pytest.raises(JobNotFound):
        delete_job(repository, settings.job_folder(jobs[0]), jobs[0])


def test_stages_of_ended_jobs_go_and_artifacts_stay(repository: JobRepository, settings: WorkerSettings) -> None:
    ended, running = made(repository, settings), made(repository, settings, None)
    repository.pause(paused := made(repository, settings, None))
    time.sleep(0.02)
    later = settings.model_copy(update={"work_retention_hours": 1.0})
    assert remove_stages(repository, later) == 0
    assert remove_stages(repository, settings) == 1
    folder = settings.job_folder(ended)
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt", "run"]
    assert [path.name for path in (folder / "run").iterdir()] == ["artifacts"]
    assert (folder / "run/artifacts/continued/model.safetensors").read_bytes() == b"weights"
    for job_id in (running, paused):
        assert (settings.job_folder(job_id) / "run/work/fan-0-abc/state/model.safetensors").is_file()
    assert remove_stages(repository, settings) == 0


def _aged(folder: Path, seconds: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder, (time.time() - seconds,) * 2)
    return folder


def test_old_folders_without_a_job_go(repository: JobRepository, settings: WorkerSettings) -> None:
    old, young = (
        _aged(settings.job_folder(new_job_id()), ORPHAN_S + 60),
        _aged(settings.job_folder(new_job_id()), ORPHAN_S - 60),
    )
    live = [made(repository, settings, end) for end in (None, JobStatus.SUCCEEDED)]
    for job_id in live:
        _aged(settings.job_folder(job_id), 10 * ORPHAN_S)
    other = _aged(settings.data / "jobs" / "notes", 10 * ORPHAN_S)
    assert remove_orphans(repository, settings) == 1
    assert not old.exists()
    assert all(path.is_dir() for path in (young, other, *map(settings.job_folder, live)))


def test_folders_that_an_empty_store_finds_are_left_alone(
    repository: JobRepository, settings: WorkerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """As with the address of another store by mistake."""
    folder = _aged(settings.job_folder(made(repository, settings)), 10 * ORPHAN_S)
    repository._redis.flushall()
    assert remove_orphans(repository, settings) == 0
    assert folder.is_dir()
    assert "another job store" in caplog.text


def test_folders_of_another_store_are_left_alone_whatever_this_one_knows(
    repository: JobRepository, settings: WorkerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """As after the store was lost, and the service went on."""
    folder = _aged(settings.job_folder(made(repository, settings)), 10 * ORPHAN_S)
    assert remove_orphans(repository, settings) == 0
    assert "another job store" not in caplog.text
    repository._redis.flushall()
    made(repository, settings)
    assert remove_orphans(repository, settings) == 0
    assert folder.is_dir()
    assert "another job store" in caplog.text


def test_a_sweep_that_fails_keeps_no_other_from_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    rounds: list[str] = []

    def fail() -> int:
        rounds.append("fails")
        raise OSError("gone")

    def remove() -> int:
        rounds.append("works")
        return 2

    thread = Sweeper({"these": fail, "those": remove}, 0.01)
    with caplog.at_level("INFO", logger=sweeper.__name__):
        thread.start()
        deadline = time.monotonic() + 10
        while rounds.count("works") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        thread.stop()
    assert rounds[:4] == ["fails", "works"] * 2
    assert "could not remove these" in caplog.text
    assert "removed those: 2" in caplog.text


def test_every_sweep_of_jobs_is_listed(repository: JobRepository, settings: WorkerSettings) -> None:
    listed: dict[str, Any] = sweeper.sweeps(repository, settings)
    made(repository, settings)
    _aged(settings.job_folder(new_job_id()), 2 * ORPHAN_S)
    time.sleep(0.02)
    assert {name: remove() for name, remove in listed.items()} == {
        "expired jobs": 1, "stages of ended jobs": 0, "folders without a job": 0,  # of which none was ever its own
        "uploads": 0,
    }  # fmt: skip


def uploaded(settings: WorkerSettings, age_s: float, complete: bool = True) -> str:
    """An upload of five bytes, last touched so long ago."""
    uploads = UploadRepository(settings.data / "uploads")
    upload_id = uploads.create("local", filename="a", length=5).id
    content = uploads.open("local", upload_id)
    content.append(memoryview(b"bytes"))
    if complete:
        uploads.complete("local", content, None)
    content.close()
    for path in (settings.data / "uploads" / "local" / upload_id).iterdir():
        os.utime(path, (0, time.time() - age_s))
    return upload_id


def test_uploads_past_their_time_go_unless_a_job_needs_them(
    repository: JobRepository, settings: WorkerSettings
) -> None:
    remove_orphans(repository, settings)  # says whose folder it is
    settings = settings.model_copy(update={"upload_retention_days": 10, "upload_expiry_seconds": 100})
    old, new, used = (uploaded(settings, days * _DAY_S) for days in (11, 9, 11))
    late, early = uploaded(settings, 101, complete=False), uploaded(settings, 50, complete=False)
    touched = uploaded(settings, 11 * _DAY_S)
    UploadRepository(settings.data / "uploads").path("local", touched)  # what a request that names it does
    request = {"model": {"upload_id": used}}
    job_id = new_job_id()
    repository.create(job_id, "local", {"request": request, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}})
    assert remove_uploads(repository, settings) == 2
    left = {folder.name for folder in (settings.data / "uploads" / "local").iterdir()}
    assert left == {new, used, early, touched}
    assert {old, late}.isdisjoint(left)
    repository.cancel(job_id)
    assert remove_uploads(repository, settings) == 1
    for_ever = settings.model_copy(update={"upload_retention_days": 0})
    assert remove_uploads(repository, for_ever) == 0


def test_an_upload_that_is_being_written_is_not_swept(repository: JobRepository, settings: WorkerSettings) -> None:
    remove_orphans(repository, settings)
    settings = settings.model_copy(update={"upload_expiry_seconds": 100})
    upload_id = uploaded(settings, 101, complete=False)
    uploads = UploadRepository(settings.data / "uploads")
    content = uploads.open("local", upload_id)
    assert remove_uploads(repository, settings) == 0
    content.close()
    assert remove_uploads(repository, settings) == 1
