"""Bytes between the bucket and a job's folder on this machine, beside the one thread that renews the lease."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

from app.jobs.settings import RUN
from app.storage.storage import Check, Storage, go_on
from app.uploads.repository import UploadRepository
from known_core.errors import KnownError
from known_core.spec import JobSpec, paths_of
from worker.settings import WorkerSettings

_log = logging.getLogger(__name__)
_LOOK_S = 2  # between two looks for stages that are finished
_PAUSE_S = 5  # between two tries while the bucket is away
_LAID_OUT = "inputs-"  # a stage that is not kept: a file for each image, unpacked again sooner than fetched
_STAGE, _MANIFEST, _LOG = "stage.json", "manifest.json", "log.txt"


class Stopped(Exception):
    """A transfer was given up because nobody waits for it any more."""


class Carrier:
    """What a job's folder has and the bucket lacks, and the other way round. Every method can be repeated.

    Args:
        storage: the bucket; None: the folder is shared by everybody, and nothing has to be carried.
    """

    def __init__(self, storage: Storage | None, settings: WorkerSettings, job_id: str) -> None:
        self._storage, self._settings, self._job_id = storage, settings, job_id
        self._folder = settings.job_folder(job_id)
        self._stored: set[str] = set()  # stages that are in the bucket
        self._log_bytes = 0  # of the log, there
        self._lock = Lock()  # one transfer at a time

    @property
    def is_needed(self) -> bool:
        return self._storage is not None

    def bring(self, spec: JobSpec, check: Check = go_on) -> None:
        """The uploads that a job reads, the stages that were finished elsewhere, and the log so far."""
        if self._storage is None:
            return
        uploads = UploadRepository(self._settings.data / "uploads", storage=self._storage)
        for path in paths_of(spec).values():
            if path.is_relative_to(self._settings.data / "uploads"):
                tenant, upload_id, _ = path.relative_to(self._settings.data / "uploads").parts
                uploads.path(tenant, upload_id, check)
        for name in self._storage.children(f"stages/{self._job_id}"):
            try:
                self._bring_stage(name, check)
            except KnownError as error:
                if error.retryable:
                    raise
                _log.warning("%s: the stage %s is run again: %s", self._job_id, name, error)

    def _bring_stage(self, name: str, check: Check) -> None:
        assert self._storage is not None
        key = f"stages/{self._job_id}/{name}"
        if self._storage.file(f"{key}/{_STAGE}") is None:  # who put it there was interrupted
            return
        self._storage.fetch_folder(key, self._work / name, _STAGE, check)
        self._stored.add(name)

    def bring_result(self, check: Check = go_on) -> None:
        """The artifacts of a job that succeeded elsewhere."""
        if self._storage is not None:
            key = f"jobs/{self._job_id}/artifacts"
            self._storage.fetch_folder(key, self._folder / RUN / "artifacts", _MANIFEST, check)

    def bring_log(self) -> None:
        """What earlier attempts on other machines have logged, where that is more than is here."""
        if self._storage is None:
            return
        here, there = self._folder / _LOG, self._storage.file(f"jobs/{self._job_id}/{_LOG}")
        if there is not None and there.bytes > (here.stat().st_size if here.is_file() else 0):
            self._storage.fetch(there.key, here, None)

    def keep_stages(self, check: Check = go_on) -> None:
        """Put every finished stage into the bucket, and the log where it has grown."""
        if self._storage is None:
            return
        with self._lock:
            for record in sorted(self._work.glob(f"[!.]*/{_STAGE}")):
                name = record.parent.name
                if name not in self._stored and not name.startswith(_LAID_OUT):
                    key = f"stages/{self._job_id}/{name}"
                    self._storage.put_folder(self._folder / RUN, f"work/{name}", key, _STAGE, check)
                    self._stored.add(name)
            self._keep_log()

    def keep_result(self, check: Check = go_on) -> None:
        """Put the artifacts into the bucket, and the log."""
        if self._storage is None:
            return
        with self._lock:
            key = f"jobs/{self._job_id}/artifacts"
            self._storage.put_folder(self._folder / RUN, "artifacts", key, _MANIFEST, check)
            self._keep_log()

    def keep_log(self, check: Check = go_on) -> None:
        if self._storage is not None:
            with self._lock:
                self._keep_log()

    def _keep_log(self) -> None:
        assert self._storage is not None
        log = self._folder / _LOG
        if log.is_file() and (size := log.stat().st_size) != self._log_bytes:
            self._storage.write(f"jobs/{self._job_id}/{_LOG}", log.read_bytes())
            self._log_bytes = size

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which stages are put into the bucket as they are finished. What is under way at its end is given
        up: whoever needs it calls ``keep_stages``."""
        if self._storage is None:
            yield
            return
        over = Event()
        thread = Thread(target=self._watch, args=(over,), name="carrier", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: Event) -> None:
        while not over.wait(_LOOK_S):
            try:
                self.keep_stages(_check_of(over))
            except Stopped:
                return
            except (KnownError, OSError) as error:
                _log.warning("%s: a stage is not in the bucket yet: %s", self._job_id, error)

    @property
    def _work(self) -> Path:
        return self._folder / RUN / "work"


class Errand:
    """A transfer in a thread; in a context, whose end gives up what is not done.

    While the bucket is away it is tried again.

    Args:
        patience_s: for how long.
    """

    def __init__(self, transfer: Callable[[Check], None], patience_s: float) -> None:
        self._transfer, self._patience_s = transfer, patience_s
        self._over = Event()
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="errand", daemon=True)

    def __enter__(self) -> "Errand":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def done(self, within_s: float) -> bool:
        """Whether it is done, or will be in so many seconds. Raises: what the transfer did."""
        self._thread.join(within_s)
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def _run(self) -> None:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return self._transfer(_check_of(self._over))
            except Exception as error:
                passes = isinstance(error, KnownError) and error.retryable
                if not passes or time.monotonic() > until or self._over.is_set():
                    self._error = error
                    return None
                _log.warning("will try again: %s", error)
            self._over.wait(_PAUSE_S)


def _check_of(over: Event) -> Check:
    def check() -> None:
        if over.is_set():
            raise Stopped

    return check
