"""Which workers may run a job: by the device its request asks for, and the GPU memory it was estimated to need."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

Queue = Literal["gpu", "cpu", "control"]
GPU: Queue = "gpu"
CPU: Queue = "cpu"
CONTROL: Queue = "control"  # what must not wait behind jobs: publishing again, and calls for help with a nowcast
QUEUES: tuple[Queue, ...] = get_args(Queue)
Device = Literal["auto", "cuda", "cpu"]
KEY_PREFIX = "known:celery:"  # of all keys that Celery makes
_UNKNOWN = 1 << 60  # bytes of a GPU whose driver does not say how many it has: any job is tried there


def list_key(queue: Queue) -> str:
    """The list in Redis that holds a queue's messages."""
    return f"{KEY_PREFIX}{queue}"


@dataclass(frozen=True)
class Needs:
    """What a job needs of a worker; kept in its record. ``gpu_memory_bytes``: 0 where there is no estimate."""

    device: Device = "auto"
    gpu_memory_bytes: int = 0

    @classmethod
    def of(cls, device: Device, estimate: Mapping[str, Any] | None) -> Self:
        """From the request's device and what the job's estimate expects: with less, a trainer halves its batches."""
        memory = (estimate or {}).get("gpu_memory_bytes") or {}
        return cls(device, int(memory.get("expected") or 0))


@dataclass(frozen=True)
class Capacity:
    """What a worker offers.

    Args:
        queues: that it serves.
        gpu_memory_bytes: of the GPUs over which it spreads a network, in all; 0 without one.
        gpu_free_bytes: what of that nothing else uses now.
    """

    queues: tuple[Queue, ...]
    gpu_memory_bytes: int = 0
    gpu_free_bytes: int = 0

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """From what a worker says of itself. A network is on the first of its GPUs, or spread over so many of them."""
        queues = tuple(facts.get("queues") or ())
        if GPU not in queues:
            return cls(queues)
        gpus = (facts.get("load") or {}).get("gpus") or [{"total": 0, "used": 0}]
        gpus = gpus[: facts.get("gpus_of_a_network") or 1]
        total = sum(gpu["total"] or _UNKNOWN for gpu in gpus)
        return cls(queues, total, total - sum(gpu["used"] for gpu in gpus))


@dataclass(frozen=True)
class Placement:
    """Where a job's wake-up goes, and, where no living worker can take it, what it waits for."""

    queues: tuple[Queue, ...]
    waiting_for: str | None = None


def largest_gpu(workers: Iterable[Capacity]) -> int:
    """Bytes of the largest GPU of a worker that serves ``gpu``; -1 where none does."""
    return max((worker.gpu_memory_bytes for worker in workers if GPU in worker.queues), default=-1)


def place(needs: Needs, workers: Iterable[Capacity]) -> Placement:
    """Where a job is to wait.

    ``auto`` goes to a GPU where a living worker has one that is large enough, else to a CPU. app/jobs/next.lua decides
    by the same rule what a worker takes.
    """
    living = list(workers)
    largest, need = largest_gpu(living), needs.gpu_memory_bytes
    if needs.device != "cpu" and need <= largest:
        return Placement((GPU,))
    if needs.device != "cuda" and any(CPU in worker.queues for worker in living):
        return Placement((CPU,))
    if needs.device == "cpu":
        return Placement((CPU,), "a worker that serves the queue cpu")
    if largest >= 0:
        return Placement((GPU,), f"a worker with {need / 1e9:.1f} GB of GPU memory; the most is {largest / 1e9:.1f} GB")
    if needs.device == "cuda":
        return Placement((GPU,), "a worker with a GPU")
    return Placement((GPU, CPU), "a worker")
