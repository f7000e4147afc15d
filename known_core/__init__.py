"""The science of known: KNOW prediction (CVPR 2026, arXiv 2508.05059) as a library that needs no server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from known_core.callback import KnownCallback
    from known_core.client import AsyncClient, Client
    from known_core.library import Enhanced, Probe, enhance

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Enhanced", "KnownCallback", "Probe", "__version__", "enhance"]
_HOMES = {
    "AsyncClient": "known_core.client",
    "Client": "known_core.client",
    "Enhanced": "known_core.library",
    "KnownCallback": "known_core.callback",
    "Probe": "known_core.library",
    "enhance": "known_core.library",
}


def __getattr__(name: str) -> Any:
    """What is asked for is imported then: ``import known_core`` alone loads no torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
