"""The Hub as one account sees it: commits, listings, parts of files, and files through a cache that is shared."""

import fcntl
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import HfApi, constants, hf_hub_url, scan_cache_dir
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, http_stream_backoff, tqdm

from known_core.checkpoint.reader import INDEX, weight_files
from known_core.errors import KnownError
from known_core.files import link_or_copy
from known_core.hub.errors import disk_full, hub_errors, patiently, unreachable
from known_core.hub.needed import needed_files
from known_core.hub.ref import HubRef

SMALL_BYTES = 10_000_000  # files below come whole, through the cache; of larger ones only the parts that are read
READAHEAD_BYTES = 1 << 18  # holds the header of most safetensors files and the footer of most parquet files
TIMEOUT_S = 60.0  # without a byte from the Hub; the client's own default is to wait for ever
PARALLEL = 3  # downloads


@dataclass(frozen=True)
class Hub:
    """A Hub, as one account or as nobody, with a cache that jobs and tenants share.

    The Hub is asked on every use whether this token opens the repository: that another tenant's files lie in the cache
    opens nothing. Every file is checked against its commit's listing whenever it leaves the cache.

    Args:
        endpoint: its address; None is the client's own, https://huggingface.co or ``HF_ENDPOINT``.
        token: of the account; None is nobody, never a token that is stored on this machine.
        cache: in the layout of huggingface_hub.
        max_cache_bytes: what :meth:`trim` leaves in it.
    """

    endpoint: str | None
    token: str | None = field(repr=False)
    cache: Path
    max_cache_bytes: int

    @property
    def _api(self) -> HfApi:
        session = get_session()
        if session.timeout.read is None:
            session.timeout = TIMEOUT_S
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def resolve(self, ref: HubRef) -> HubRef:
        """Ask the Hub which commit a revision is, and what the repository is called now.

        Raises:
            KnownError: what :func:`hub_errors` names.
        """

        def info() -> Any:
            return self._api.repo_info(ref.repo_id, revision=ref.revision, repo_type=ref.kind)

        answer = patiently(ref, info)
        resolved = HubRef(answer.id, answer.sha, ref.kind)
        if not resolved.resolved:
            raise unreachable(f"the {ref.kind} {ref.label}", "its answer names no commit")
        return resolved

    def source(self, ref: HubRef) -> "HubSource":
        """The needed files of a resolved repository, to be looked into without fetching them.

        Raises:
            KnownError: what :func:`hub_errors` and :func:`needed_files` name; ``index_invalid``,
                ``shard_path_invalid`` and ``weights_missing`` for a bad index of shards.
        """
        everything = HubSource(self, ref, self._files(ref))
        shards = weight_files(everything) if ref.kind == "model" and INDEX in everything.files else ()
        needed = needed_files(everything.files, ref.kind, shards)
        return replace(everything, files={name: everything.files[name] for name in needed})

    def fetch(self, ref: HubRef, target: Path, names: Sequence[str], on_bytes: Callable[[int, int], None]) -> None:
        """Put files of a resolved repository below ``target``, as regular files whose checksums were checked.

        Files that the cache holds are not downloaded again, and files that have arrived stay there when the call fails.
        Hard links where the file system has them: never write into these files.

        Args:
            on_bytes: called twice a second in the caller's thread with the bytes so far and of all files. What it
                raises ends the download.

        Raises:
            KnownError: what :func:`hub_errors` names; ``checksum_mismatch``; ``disk_full`` before anything is fetched
                where it can be foreseen.
        """
        listed = self._files(ref)
        files = [_entry(listed, name, ref) for name in dict.fromkeys(names)]
        total = sum(file.size for file in files)
        done = dict.fromkeys((file.path for file in files), 0)
        stopped = threading.Event()

        def bring(file: RepoFile) -> None:
            def count(received: int) -> None:
                if stopped.is_set():
                    raise CancelledError
                done[file.path] = min(max(done[file.path] + received, 0), file.size)

            blob = self._cached(ref, file, count)
            with hub_errors(ref):
                destination = target / file.path
                destination.unlink(missing_ok=True)  # it may be a link to the blob itself, or a part of a copy
                link_or_copy(blob, destination)
            done[file.path] = file.size

        with self._in_use(ref), ThreadPoolExecutor(PARALLEL) as pool:
            self._check_space(ref, files)
            pending = {pool.submit(bring, file) for file in files}
            try:
                while pending:
                    finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    on_bytes(sum(done.values()), total)
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
        self.trim()

    def trim(self) -> None:
        """Delete the revisions that were used least recently until the cache is below ``max_cache_bytes``.

        What is in use stays. Several processes may call it; all but the first return at once.
        """
        with ExitStack() as locks:
            if not locks.enter_context(self._lock("trim", fcntl.LOCK_EX | fcntl.LOCK_NB)):
                return
            idle = {
                folder.name
                for folder in self.cache.glob("*s--*")
                if locks.enter_context(self._lock(folder.name, fcntl.LOCK_EX | fcntl.LOCK_NB))
            }
            for name in idle:  # nobody downloads into these: who did was killed
                for unfinished in (self.cache / name / "blobs").glob("*.incomplete"):
                    unfinished.unlink(missing_ok=True)
            cached = scan_cache_dir(self.cache)
            excess = cached.size_on_disk - self.max_cache_bytes
            # two repositories can have the same commit: only those that are idle may be searched for it
            repos = frozenset(repo for repo in cached.repos if repo.repo_path.name in idle)
            revisions = [revision for repo in repos for revision in repo.revisions]
            revisions.sort(key=lambda revision: revision.snapshot_path.stat().st_mtime)
            doomed: list[str] = []
            for revision in revisions:
                if replace(cached, repos=repos).delete_revisions(*doomed).expected_freed_size >= excess:
                    break
                doomed.append(revision.commit_hash)
            replace(cached, repos=repos).delete_revisions(*doomed).execute()

    def _files(self, ref: HubRef) -> dict[str, RepoFile]:
        if not ref.resolved:
            raise ValueError(f"{ref.label} is to be resolved first")

        def listing() -> list[RepoFile]:
            api = self._api
            api.auth_check(ref.repo_id, repo_type=ref.kind)  # the listing of a gated repository is public
            tree = api.list_repo_tree(ref.repo_id, recursive=True, revision=ref.revision, repo_type=ref.kind)
            return [entry for entry in tree if isinstance(entry, RepoFile)]

        files = {file.path: file for file in patiently(ref, listing)}
        for name in files:
            if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name or "\0" in name:
                raise KnownError("archive_path_invalid", f"{ref.label} holds the path {name[:120]!r}", "Rename it.")
        return files

    def _cached(self, ref: HubRef, file: RepoFile, count: Callable[[int], None]) -> Path:
        """The file in the cache (a blob, no link), fetched where it is not there, and checked."""

        class Meter(tqdm):
            """In the place of the client's progress bar."""

            def __init__(self, *args: Any, **settings: Any) -> None:
                super().__init__(*args, **settings | {"disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> bool | None:
                count(int(n or 0))
                return None

        def download() -> Path:
            count(-file.size)  # a new attempt begins at nothing
            return Path(
                self._api.hf_hub_download(
                    ref.repo_id,
                    file.path,
                    repo_type=ref.kind,
                    revision=ref.revision,
                    cache_dir=self.cache,
                    tqdm_class=Meter,
                )
            )

        path = patiently(ref, download)
        blob = path.resolve()
        if _digest(blob, file) != (file.lfs.sha256 if file.lfs else file.blob_id):
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)  # so that the next attempt downloads it
            raise KnownError(
                "checksum_mismatch",
                f"{ref.label}: {file.path} is not what its commit says",
                "Try again; if it stays so, the file on the Hub is damaged.",
                retryable=True,
            )
        return blob

    def _range(self, ref: HubRef, file: RepoFile, begin: int, end: int) -> bytes:
        """The bytes of a file from ``begin`` to ``end``."""

        def part() -> bytes:
            url = hf_hub_url(
                ref.repo_id, file.path, repo_type=ref.kind, revision=ref.revision, endpoint=self.endpoint
            )  # fmt: skip
            headers = build_hf_headers(token=self.token or False) | {"Range": f"bytes={begin}-{end - 1}"}
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with http_stream_backoff("GET", url, headers=headers, timeout=timeout, max_retries=0) as response:
                hf_raise_for_status(response)
                data = response.read() if response.status_code == 206 else b""
            if len(data) != end - begin:
                raise KnownError(
                    "source_unreadable",
                    f"{ref.label}: the Hub does not give parts of {file.path}",
                    "Use an endpoint that answers range requests.",
                )
            return data

        return patiently(ref, part)

    def _check_space(self, ref: HubRef, files: Iterable[RepoFile]) -> None:
        missing = sum(file.size for file in files if not (self._snapshot(ref) / file.path).exists())
        free = shutil.disk_usage(self.cache).free
        if missing > free:
            raise disk_full(f"{ref.label} needs {missing:,} bytes in {self.cache}, and {free:,} are free")

    def _snapshot(self, ref: HubRef) -> Path:
        folder = repo_folder_name(repo_id=ref.repo_id, repo_type=ref.kind)
        return self.cache / folder / "snapshots" / str(ref.revision)

    @contextmanager
    def _in_use(self, ref: HubRef) -> Iterator[None]:
        """No :meth:`trim` of any process touches the repository inside."""
        snapshot = self._snapshot(ref)
        with self._lock(snapshot.parents[1].name, fcntl.LOCK_SH):
            yield
            if snapshot.exists():
                os.utime(snapshot)  # when it was used last; the access times of many file systems do not tell

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[bool]:
        """Hold a lock of all processes that share the cache; False where another holds it and ``how`` says not to wait.

        The kernel's, so that it ends with its process, and shared, which filelock's are not.
        """
        path = self.cache / ".locks" / "known" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            try:
                fcntl.flock(stream, how)
                held = True
            except BlockingIOError:
                held = False
            yield held


def _entry(files: Mapping[str, RepoFile], name: str, ref: HubRef) -> RepoFile:
    if name not in files:
        raise KnownError(
            "hub_file_missing",
            f"{ref.label} has no file {name[:120]!r}",
            "Check its files at this revision.",
        )
    return files[name]


def _digest(path: Path, file: RepoFile) -> str:
    """What the Hub names a file by: sha256 of one in LFS, otherwise git's sha1."""
    git = partial(hashlib.sha1, b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256" if file.lfs else git).hexdigest()


@dataclass(frozen=True)
class HubSource:
    """Files of a resolved repository; a :class:`~known_core.checkpoint.source.Source`."""

    hub: Hub
    ref: HubRef
    files: Mapping[str, RepoFile] = field(repr=False)

    def names(self) -> list[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        """Raises: KnownError ``hub_file_missing``."""
        return _entry(self.files, name, self.ref).size

    def open(self, name: str) -> BinaryIO:
        """Open a small file whole, through the cache; of a large one only what is read is transferred.

        Raises:
            KnownError: what :func:`hub_errors` names, now or while it is read; ``checksum_mismatch``.
        """
        file = _entry(self.files, name, self.ref)
        if file.size >= SMALL_BYTES:
            return io.BufferedReader(_RangeStream(self.hub, self.ref, file), READAHEAD_BYTES)
        with self.hub._in_use(self.ref):
            return self.hub._cached(self.ref, file, lambda received: None).open("rb")


class _RangeStream(io.RawIOBase):
    """A file on the Hub; each read is a request for these bytes."""

    def __init__(self, hub: Hub, ref: HubRef, file: RepoFile) -> None:
        self._hub, self._ref, self._file, self._position = hub, ref, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._file.size)
        if end <= self._position:
            return 0
        data = self._hub._range(self._ref, self._file, self._position, end)
        buffer[: len(data)] = data
        self._position = end
        return len(data)

    def readall(self) -> bytes:  # in one request, not in many small ones as io does it
        return self.read(max(self._file.size - self._position, 0)) or b""
