"""Which engine a process uses: the fastest that runs there, or the one KNOWN_ENGINE names."""

import os

import torch

from known_core.errors import KnownError
from known_core.kernels import Engine
from known_core.kernels.eager import Eager

NAMES = ("eager", "cpu", "triton")


def choose_engine(device: torch.device | str, name: str | None = None) -> Engine:
    """The engine for a device.

    Args:
        device: where the hyper-model is to run.
        name: one of :data:`NAMES`; None reads KNOWN_ENGINE, and where that is not set takes triton on CUDA, cpu on a
            CPU it was compiled for, and eager elsewhere.

    Raises:
        KnownError: ``engine_unavailable`` when the engine that was named is unknown or cannot run here.
    """
    device = torch.device(device)
    name = name or os.environ.get("KNOWN_ENGINE") or None
    if name is not None and name not in NAMES:
        raise KnownError("engine_unavailable", f"there is no engine {name[:40]!r}", f"KNOWN_ENGINE takes {NAMES}.")
    if name == "eager":
        return Eager(device)
    wanted = name or ("triton" if device.type == "cuda" else "cpu" if device.type == "cpu" else "eager")
    try:
        if wanted == "cpu":
            from known_core.kernels.cpu import Cpu

            return Cpu()
        if wanted == "triton":
            from known_core.kernels.triton import Triton

            return Triton(device)
    except ImportError as error:
        if name is not None:
            raise KnownError(
                "engine_unavailable",
                f"the engine {name!r} cannot run on {device} here: {error}",
                "Unset KNOWN_ENGINE to take the best that runs; docs/operations.md says what each one needs.",
            ) from error
    return Eager(device)
