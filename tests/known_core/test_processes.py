"""What a process asks of the operating system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

_FAULTS = """
import ctypes
import resource
import sys
from known_core.processes import keep_memory

SIZE = 20 << 20  # bytes, below the largest threshold at which glibc maps a block on its own

if sys.argv[1] == "keep":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]


def step():
    blocks = [libc.malloc(SIZE) for _ in range(5)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in reversed(blocks):
        libc.free(block)


step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_asking_for_pages() -> None:
    faults = {}
    for how in ("keep", "default"):
        line = [sys.executable, "-c", _FAULTS, how]
        done = subprocess.run(
            line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60, check=True
        )
        faults[how] = int(done.stdout)
    assert faults["default"] > 10 * (faults["keep"] + 100)
