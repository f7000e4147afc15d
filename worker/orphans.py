"""Processes of ours that a worker which is gone has left behind."""

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)
_MODULES = ("worker.fetcher", "worker.helper", "worker.publisher", "worker.trainer")


def kill_orphans(jobs: Path) -> int:
    """Kill them (Linux; elsewhere there is no account of processes that needs no library).

    They end with their supervisor (PR_SET_PDEATHSIG), except where it died before they could ask for that. One whose
    parent has died belongs to init; one that a worker supervises never does.

    Args:
        jobs: the folder of the job folders; processes of others' are left alone.

    Returns:
        How many there were.
    """
    found = [pid for pid in _pids() if _is_ours(pid, jobs) and _parent(pid) == 1] if sys.platform == "linux" else []
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
            _log.warning("killed process %d, which a dead worker had left", pid)
    return len(found)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _is_ours(pid: int, jobs: Path) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        line = command.replace("\0", " ")  # what was forked has set its title, which has spaces
        return f" {jobs}{os.sep}" in line and any(f" {module} " in line for module in _MODULES)
    return False


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
