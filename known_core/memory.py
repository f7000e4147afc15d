"""Memory that runs out: told from other errors, given back, and asked for in smaller pieces."""

import errno
import gc
import re
import resource
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

Result = TypeVar("Result")
_SAYS_SO = re.compile(  # in RuntimeErrors of PyTorch, of oneDNN (which says no more) and of C++
    r"DefaultCPUAllocator: |could not (create|execute) a primitive$|could not create a memory|std::bad_alloc"
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the allocator's of a CPU, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)):
        return True
    return isinstance(error, Exception) and bool(should_reduce_batch_size(error))


def free_memory() -> None:
    """Give back what nobody refers to. Call it outside the ``except`` block: a traceback refers to every local."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory() -> dict[str, int | None]:
    """Bytes that this process held at most so far, and of the GPU's what torch did (None on a CPU)."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return {
        "memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "gpu_memory_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
    }


def halving(size: int, work: Callable[[int], Result]) -> Result:
    """``work(size)``; where memory runs out, from the beginning with half the size, down to 1."""
    while True:
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not ran_out_of_memory(error):
                raise
        size //= 2
        free_memory()
