"""What processes ask of the operating system: an end with their parent, memory that stays theirs, an end at once."""

import ctypes
import os
import platform
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MALLOPT = {-1: (1 << 31) - 1, -2: 1 << 26, -3: 1 << 25}  # malloc.h: trim threshold, top pad, mmap threshold; bytes


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux; elsewhere nothing is done).

    Args:
        parent: its pid, where this is not called first thing in the child: a parent that died before is noticed by it.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo ``die_with_parent``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def keep_memory() -> None:
    """Have glibc keep freed memory for the next allocation (with another C library nothing is done).

    The tensors of a training step, or of a tile, are allocated and freed over and over. Giving their pages back and
    taking them anew costs a fifth of a training step (docs/experiments.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in _MALLOPT.items():
        libc.mallopt(parameter, value)


def kill_pool(pool: "ProcessPoolExecutor") -> None:
    """End its processes at once, whatever they are at, and forget what they were to do."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)
