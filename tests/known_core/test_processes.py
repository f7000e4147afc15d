"""What a process asks of the operating system."""

import subprocess
import sys
from pathlib import Path

import pytest

_FAULTS = """
import resource, sys
import torch
from known_core.processes import keep_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_memory()
for round in range(6):
    if round == 1:  # the first takes memory in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 19) for _ in range(30)]  # 63 MB
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_instead_of_taken_anew() -> None:
    faults = {}
    for how in ("keep", "default"):
        line = [sys.executable, "-c", _FAULTS, how]
        done = subprocess.run(
            line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60, check=True
        )
        faults[how] = int(done.stdout)
    assert faults["keep"] < faults["default"] // 2  # how many there are depends on the kernel's huge pages
