"""Groups of processes that get only so much of the machine (Linux control groups, version 1)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_ROOT = Path("/sys/fs/cgroup")
_ENDING_S = 20.0  # of processes that were killed


@contextmanager
def cgroup(controller: str, **limits: int) -> Iterator[Path]:
    """A group; a process is in it, with all that it starts, once its id is written to its ``cgroup.procs``.

    Args:
        controller: ``cpu`` or ``memory``.
        limits: values of files of the group, without the controller's name: ``cfs_quota_us=15000``.

    Raises:
        OSError: where this machine has no such groups, or lets us make none.
    """
    group = _ROOT / controller / f"known-{uuid4().hex}"
    group.mkdir()
    try:
        for name, value in limits.items():
            (group / f"{controller}.{name}").write_text(str(value))
        yield group / "cgroup.procs"
    finally:
        deadline = time.monotonic() + _ENDING_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def cpu_quota(cores: float) -> dict[str, int]:
    """Limits of a group that may use so many cores, in each tenth of a second."""
    return {"cfs_period_us": 100_000, "cfs_quota_us": round(100_000 * cores)}
