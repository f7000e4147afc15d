"""Uploads and jobs in a bucket: seen from other machines, within quotas, removed when their time comes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import httpx
import numpy as np
import pytest

from app.jobs.deletion import delete_job
from app.jobs.record import JobStatus, new_job_id
from app.jobs.repository import JobRepository
from app.storage.storage import Storage
from app.uploads.record import Upload
from app.uploads.repository import Limits, UploadRepository
from known_core.client.steps import blocking, concurrent
from known_core.client.transfer import Patience, download_file
from known_core.errors import KnownError
from known_core.files import sha256_bytes
from tests.cutting import cutting
from tests.storage.conftest import BUCKET, S3
from tests.worker.conftest import own_server
from worker import sweeper
from worker.settings import WorkerSettings
from worker.sweeper import remove_expired, remove_stored_orphans, remove_stored_stages, remove_uploads


@pytest.fixture(scope="module")
def repository() -> Iterator[JobRepository]:
    with own_server() as one:
        yield one


@pytest.fixture
def settings(s3: S3, tmp_path: Path, request: pytest.FixtureRequest, repository: JobRepository) -> WorkerSettings:
    repository._redis.flushall()
    return WorkerSettings(
        data_dir=tmp_path, storage_url=f"s3://{BUCKET}/{request.node.name}", storage_endpoint=s3.endpoint,
        job_retention_days=1e-7, work_retention_hours=0,
    )  # fmt: skip


def upload(uploads: UploadRepository, data: bytes, tenant: str = "local") -> Upload:
    upload_id = uploads.create(tenant, filename="model.safetensors", length=len(data)).id
    content = uploads.open(tenant, upload_id)
    try:
        uploads.append(tenant, content, memoryview(data), reserved=True)
        return uploads.complete(tenant, content, None)
    finally:
        content.close()


def test_an_upload_is_the_same_on_every_machine(storage: Storage, tmp_path: Path) -> None:
    one, other = (UploadRepository(tmp_path / name, storage=storage) for name in ("one", "other"))
    made = upload(one, b"weights")
    assert other.get("local", made.id) == made
    path = other.path("local", made.id)
    assert path == tmp_path / "other" / "local" / made.id / "content"
    assert path.read_bytes() == b"weights"
    with pytest.raises(KnownError, match="upload_not_found"):
        other.get("another", made.id)
    other.remove("local", made.id)
    assert storage.files() == []
    for uploads in (one, other):  # though a copy of its bytes may be on the machine
        with pytest.raises(KnownError, match="upload_not_found"):
            uploads.path("local", made.id)


def test_an_upload_is_there_once_its_record_is_in_the_bucket(storage: Storage, tmp_path: Path) -> None:
    here, elsewhere = (UploadRepository(tmp_path / name, storage=storage) for name in ("here", "elsewhere"))
    away = UploadRepository(tmp_path / "here", storage=Storage("s3://known-test/away", "http://127.0.0.1:9"))
    with pytest.raises(KnownError, match="storage_unavailable"):
        upload(away, b"weights")
    (upload_id,) = (folder.name for folder in (tmp_path / "here" / "local").iterdir())
    with pytest.raises(KnownError, match="upload_not_found"):
        elsewhere.get("local", upload_id)
    assert not here.get("local", upload_id).complete
    content = here.open("local", upload_id)  # nothing of it has to be sent again
    here.complete("local", content, None)
    content.close()
    assert elsewhere.path("local", upload_id).read_bytes() == b"weights"


def test_a_quota_counts_what_is_in_the_bucket(storage: Storage, tmp_path: Path) -> None:
    one, other = (UploadRepository(tmp_path / name, Limits(tenant_bytes=10), storage) for name in ("one", "other"))
    upload(one, b"7 bytes")
    upload(one, b"another's", "another")
    with pytest.raises(KnownError, match="storage_quota_exceeded"):
        other.create("local", filename="a", length=4)
    other.create("local", filename="a", length=3)


def made(repository: JobRepository, storage: Storage, end: JobStatus | None) -> str:
    """A job that has run on another machine."""
    job_id = new_job_id()
    repository.create(job_id, "local", {"request": {}, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}})
    fence = repository.claim(job_id, "owner", 60, 3) or 0
    for key in (f"jobs/{job_id}/log.txt", f"jobs/{job_id}/artifacts/manifest.json", f"stages/{job_id}/a-1/stage.json"):
        storage.write(key, b"{}")
    if end is not None:
        repository.finish(job_id, fence, end, {"selected": "x2"})
    return job_id


def test_jobs_in_the_bucket_go_when_their_time_comes(
    repository: JobRepository, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = settings.storage()
    assert storage is not None
    kept, running = made(repository, storage, JobStatus.SUCCEEDED), made(repository, storage, None)
    time.sleep(0.02)
    assert remove_stored_stages(repository, storage, settings) == 1
    assert storage.children("stages") == [running]
    assert {file.key for file in storage.files(f"jobs/{kept}")} == {
        f"jobs/{kept}/log.txt", f"jobs/{kept}/artifacts/manifest.json"
    }  # fmt: skip
    assert remove_expired(repository, settings) == 1
    assert storage.children("jobs") == [running]
    assert not delete_job(repository, settings.job_folder(running), running, storage)
    orphan = new_job_id()
    storage.write(f"jobs/{orphan}/log.txt", b"x")
    assert remove_stored_orphans(repository, storage) == 0  # too young
    monkeypatch.setattr(sweeper, "ORPHAN_S", -1)
    assert remove_stored_orphans(repository, storage) == 1
    assert storage.children("jobs") == [running]
    repository._redis.flushall()  # another store, or this one is lost: nobody's results are removed
    assert remove_stored_orphans(repository, storage) == 0
    assert storage.children("jobs") == [running]


def test_uploads_in_the_bucket_go_unless_a_job_needs_them(repository: JobRepository, settings: WorkerSettings) -> None:
    storage = settings.storage()
    assert storage is not None
    sweeper.remove_orphans(repository, settings)  # says whose folder it is
    remove_stored_orphans(repository, storage)  # and whose bucket
    uploads = UploadRepository(settings.data / "elsewhere", storage=storage)
    old, used = upload(uploads, b"old"), upload(uploads, b"used")
    request = {"model": {"upload_id": used.id}}
    job_id = new_job_id()
    repository.create(job_id, "local", {"request": request, "spec": {}, "hub": {}, "resolved": {}, "metadata": {}})
    assert remove_uploads(repository, settings) == 0
    time.sleep(2.1)  # S3 tells the second alone
    assert remove_uploads(repository, settings.model_copy(update={"upload_retention_days": 1 / 86_400})) == 1
    assert storage.children("uploads/local") == [used.id]
    with pytest.raises(KnownError, match="upload_not_found"):
        uploads.get("local", old.id)


@contextmanager
def redirecting(url: str) -> Iterator[str]:
    """An API that asks for a key and says that a bucket has the file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307 if self.headers["Authorization"] == "Bearer canary" else 401)
            self.send_header("Location", url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_clients_follow_to_the_bucket_without_their_key(
    s3: S3, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Over connections that are cut: the bucket refuses a request with a second credential, as S3 does."""
    data = np.random.default_rng(0).bytes(3 << 20)
    Storage(f"s3://{BUCKET}/{kind}", s3.endpoint).write("a", data)
    headers = {"Authorization": "Bearer canary"}
    with cutting(s3.port, cuts=3, at_most=1 << 20, answers=True) as (endpoint, proxy):
        url = Storage(f"s3://{BUCKET}/{kind}", endpoint).signed_url("a", 60, "a")
        with redirecting(url) as server:
            steps = download_file("/a", tmp_path / "a", len(data), sha256_bytes(data), lambda done: None, Patience(30))
            if kind == "blocking":
                with httpx.Client(base_url=server, headers=headers) as http:
                    blocking(http, steps)
            else:

                async def fetch() -> None:
                    async with httpx.AsyncClient(base_url=server, headers=headers) as http:
                        await concurrent(http, steps)

                anyio.run(fetch)
    assert proxy.cuts == 0
    assert (tmp_path / "a").read_bytes() == data
