"""A full disk: a small tmpfs in the place of the uploads, or of the job folders."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from known_core.errors import KnownError
from tests.chaos.scene import Scene

Begin = Callable[..., Scene]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take the free space but for some bytes; returns the file that takes it."""
    filler = folder / "filler"
    with filler.open("wb") as stream:
        while True:
            left = os.statvfs(folder)
            try:
                os.posix_fallocate(stream.fileno(), 0, left.f_bavail * left.f_bsize - leave)
                return filler
            except OSError as error:
                if error.errno != errno.ENOSPC:  # a job took some between the two calls: look again
                    raise


@pytest.mark.fault("no space for an upload", (18,))
def test_an_upload_that_does_not_fit_leaves_nothing(scene: Begin, tmp_path: Path) -> None:
    running = scene()
    with small_disk(running.folder / "uploads", 20):
        (tmp_path / "large").write_bytes(os.urandom(1 << 20))
        fill(running.folder / "uploads", leave=300_000)
        free = os.statvfs(running.folder / "uploads").f_bavail
        with pytest.raises(KnownError) as refused:
            running.client.upload(tmp_path / "large")
        assert refused.value.code == "disk_full"
        assert [path.name for path in (running.folder / "uploads").rglob("*") if path.is_file()] == ["filler"]
        assert not list((running.folder / "uploads").rglob("upl_*"))
        assert os.statvfs(running.folder / "uploads").f_bavail == free


@pytest.mark.chaos
@pytest.mark.parametrize("phase", ["downloading", "forgetting 2 of 4", "calibrating"])
@pytest.mark.fault("the disk is full from {phase} on", (13, 18))
def test_a_job_on_a_full_disk_fails_and_says_so(scene: Begin, phase: str) -> None:
    """Nothing of it is taken for finished; the same request succeeds where there is space again."""
    running = scene()
    with small_disk(running.folder / "jobs", 60):
        job_id = running.start()
        running.wait_for(job_id, phase)
        filler = fill(running.folder / "jobs")
        job = running.judge(job_id, "failed")
        assert job["error"]["code"] == "disk_full", job["error"]
        assert job["error"]["retryable"]
        assert not (running.folder / "jobs" / job_id / "artifacts").exists()
        filler.unlink()
        running.judge(running.start())
        running.facts["outcome"] = "failed: disk_full"
        running.stack.stop()


@pytest.mark.chaos
@pytest.mark.fault("the disk is full before a job begins", (18,))
def test_a_job_that_finds_no_space_at_all_says_so(scene: Begin) -> None:
    running = scene()
    with small_disk(running.folder / "jobs", 20):
        filler = fill(running.folder / "jobs")
        job = running.judge(running.start(), "failed")
        assert job["error"]["code"] == "disk_full"
        assert job["attempts"] == 1
        filler.unlink()
        running.stack.stop()
