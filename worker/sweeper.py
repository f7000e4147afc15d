"""Removes what nobody needs any more: jobs past their time, the inner stages of ended jobs, folders without a job; on
this machine, and in the bucket where there is one.

Every worker has a thread for it; several do no harm. A sweep is a function that removes what it finds and returns how
many there were; worker.tasks lists them.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from app.jobs.deletion import delete_job, remove_folder, remove_stored
from app.jobs.repository import JobNotFound, JobRepository
from app.jobs.settings import RUN
from app.storage.storage import Storage
from app.uploads.repository import Limits, UploadRepository
from known_core.files import atomic_path
from worker.periodic import Periodic
from worker.settings import WorkerSettings

_log = logging.getLogger(__name__)
Sweep = Callable[[], int]
ORPHAN_S = 24 * 3600  # a folder without a job is left alone for so long
_INNER = (f"{RUN}/work", f"{RUN}/cache", "hub")  # of a job's folder: nothing but running it reads these
_OWNER = "store-id"  # beside the jobs' folders: the store that knows them
_MS_PER_HOUR, _MS_PER_DAY = 3_600_000, 86_400_000
_AT_ONCE = 500  # records looked up in one round trip


def sweeps(repository: JobRepository, settings: WorkerSettings) -> dict[str, Sweep]:
    """Those of jobs, by name."""
    storage = settings.storage()
    bucket: dict[str, Sweep] = {}
    if storage is not None:
        bucket["stages in the bucket"] = lambda: remove_stored_stages(repository, storage, settings)
        bucket["jobs in the bucket without a record"] = lambda: remove_stored_orphans(repository, storage)
    return bucket | {
        "expired jobs": lambda: remove_expired(repository, settings),
        "stages of ended jobs": lambda: remove_stages(repository, settings),
        "folders without a job": lambda: remove_orphans(repository, settings),
        "uploads": lambda: remove_uploads(repository, settings),
    }


class Sweeper(Periodic):
    """Args: sweeps: by what they remove, for the log. One that fails does not keep the others from their turn."""

    def __init__(self, sweeps: Mapping[str, Sweep], every_s: float) -> None:
        super().__init__(every_s, self.sweep, name="sweeper")
        self._sweeps = sweeps

    def sweep(self) -> None:
        """One round."""
        for name, remove in self._sweeps.items():
            try:
                if count := remove():
                    _log.info("removed %s: %d", name, count)
            except Exception:
                _log.exception("could not remove %s; will try again", name)


def remove_expired(repository: JobRepository, settings: WorkerSettings) -> int:
    """Delete jobs that ended KNOWN_JOB_RETENTION_DAYS ago, as DELETE does, and finish deletions that were cut short."""
    kept_ms = settings.job_retention_days * _MS_PER_DAY or math.inf
    removed = 0
    for job_id in repository.ended_for(kept_ms):
        try:
            removed += delete_job(repository, settings.job_folder(job_id), job_id, settings.storage())
        except JobNotFound:  # another worker's sweeper was quicker
            continue
    return removed


def remove_stages(repository: JobRepository, settings: WorkerSettings) -> int:
    """Remove what only running a job needs, KNOWN_WORK_RETENTION_HOURS after it has ended. Artifacts, report and log
    stay: artifacts are hard links, or copies, so they lose nothing."""
    before = time.time() * 1000 - settings.work_retention_hours * _MS_PER_HOUR
    removed = 0
    for folder, ended_at in _job_folders(repository, settings):
        inner = [folder / name for name in _INNER if (folder / name).is_dir()]
        if ended_at and ended_at <= before and inner:
            for path in inner:
                remove_folder(path)
            removed += 1
    return removed


def remove_orphans(repository: JobRepository, settings: WorkerSettings) -> int:
    """Remove folders of jobs that the store does not know, if the folders are this store's at all: with the address
    of another one, or after it was lost, nobody's results are removed."""
    folders = list(_job_folders(repository, settings))
    if not _owns(repository, settings.data / "jobs", any(ended_at != 0 for _, ended_at in folders) or not folders):
        return 0
    orphans = [folder for folder, ended_at in folders if ended_at == 0 and _age_s(folder) > ORPHAN_S]
    for folder in orphans:
        remove_folder(folder)
    return len(orphans)


def remove_uploads(repository: JobRepository, settings: WorkerSettings) -> int:
    """Remove incomplete uploads that expired, and complete ones that no job used for KNOWN_UPLOAD_RETENTION_DAYS; not
    in the data folder of another store, whose jobs are not known here."""
    storage = settings.storage()
    if not _owns(repository, settings.data / "jobs", may_take=False):
        return 0
    if storage is not None and not _owns_bucket(repository, storage, may_take=False):
        return 0
    uploads = UploadRepository(settings.data / "uploads", Limits(expiry_s=settings.upload_expiry_seconds), storage)
    kept_s = settings.upload_retention_days * 86400 or math.inf
    return uploads.sweep(kept_s, repository.uploads_in_use)


def remove_stored_stages(repository: JobRepository, storage: Storage, settings: WorkerSettings) -> int:
    """As remove_stages, in the bucket."""
    before = time.time() * 1000 - settings.work_retention_hours * _MS_PER_HOUR
    ended = [job_id for job_id, ended_at in _stored(repository, storage, "stages") if ended_at and ended_at <= before]
    for job_id in ended:
        storage.delete(f"stages/{job_id}")
    return len(ended)


def remove_stored_orphans(repository: JobRepository, storage: Storage) -> int:
    """As remove_orphans, in the bucket."""
    found = dict([*_stored(repository, storage, "stages"), *_stored(repository, storage, "jobs")])
    if not _owns_bucket(repository, storage, any(ended_at != 0 for ended_at in found.values()) or not found):
        return 0
    removed = 0
    for job_id in [job_id for job_id, ended_at in found.items() if ended_at == 0]:
        files = [*storage.files(f"jobs/{job_id}"), *storage.files(f"stages/{job_id}")]
        if max((file.modified for file in files), default=0) < time.time() - ORPHAN_S:
            remove_stored(storage, job_id)
            removed += 1
    return removed


def _stored(repository: JobRepository, storage: Storage, kind: str) -> Iterator[tuple[str, int | None]]:
    """As _job_folders, of the bucket."""
    job_ids = iter(storage.children(kind))
    while batch := list(islice(job_ids, _AT_ONCE)):
        yield from zip(batch, repository.ended_at(batch), strict=True)


def _owns_bucket(repository: JobRepository, storage: Storage, may_take: bool) -> bool:
    """As _owns, of the bucket."""
    mine, key = repository.store_id(), f"jobs/{_OWNER}"
    said = storage.read(key)
    if said is None and may_take:
        storage.write(key, said := mine.encode())
    if said == mine.encode():
        return True
    _log.warning("the bucket belongs to another job store than KNOWN_REDIS_URL's; its files are left alone")
    return False


def _owns(repository: JobRepository, root: Path, may_take: bool) -> bool:
    """Whether the folders belong to this store; those of nobody become its own where it ``may_take`` them."""
    mine, said = repository.store_id(), root / _OWNER
    if not said.is_file() and may_take:
        with atomic_path(said) as temporary:
            temporary.write_text(mine)
    if said.is_file() and said.read_text() == mine:
        return True
    _log.warning("%s belongs to another job store than KNOWN_REDIS_URL's; its folders are left alone", root)
    return False


def _job_folders(repository: JobRepository, settings: WorkerSettings) -> Iterator[tuple[Path, int | None]]:
    """Each job's folder, and when the job ended, ms; None where it has not, 0 where there is no such job."""
    folders = (settings.data / "jobs").glob("job_*")
    while batch := list(islice(folders, _AT_ONCE)):
        yield from zip(batch, repository.ended_at([folder.name for folder in batch]), strict=True)


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
