"""Deleting a job: first nothing else may happen to it, then its files go, then its record."""

import shutil
from pathlib import Path

from app.jobs.repository import JobNotFound, JobRepository
from app.storage.storage import Storage


def delete_job(repository: JobRepository, folder: Path, job_id: str, storage: Storage | None = None) -> bool:
    """Delete a job that has ended. One that is cut short can be done again, also by several at once.

    Args:
        folder: the job's own.
        storage: where else its files are.

    Returns:
        False while it runs, or is being published.

    Raises:
        JobNotFound
    """
    if not repository.begin_delete(job_id):
        return False
    remove_folder(folder)
    if storage is not None:
        remove_stored(storage, job_id)
    try:
        return repository.delete(job_id)
    except JobNotFound:  # somebody did the same at the same time
        return True


def remove_stored(storage: Storage, job_id: str) -> None:
    """Remove a job's files from the bucket, if they are there."""
    storage.delete(f"jobs/{job_id}")
    storage.delete(f"stages/{job_id}")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all below it, if it is there; what another process removes meanwhile is no error."""

    def forgive(_function: object, _path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(failure[1], FileNotFoundError):
            raise failure[1]

    shutil.rmtree(folder, onerror=forgive)
