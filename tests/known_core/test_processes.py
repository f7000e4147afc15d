"""What a process asks of the operating system."""

import subprocess
import sys
from pathlib import Path

import pytest

_KEPT = """
import sys
import torch
from known_core.bench.nowcast import _memory
from known_core.processes import keep_memory

if sys.argv[1] == "keep":
    keep_memory()
before = _memory("VmRSS")
for round in range(3):
    tensors = [torch.ones(6 << 20) for _ in range(4)]  # 100 MB
    del tensors
print(_memory("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_with_the_process() -> None:
    kept = {}
    for how in ("keep", "default"):
        line = [sys.executable, "-c", _KEPT, how]
        done = subprocess.run(
            line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60, check=True
        )
        kept[how] = int(done.stdout)
    assert kept["keep"] - kept["default"] > 30 << 20
