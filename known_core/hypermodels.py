"""Which hyper-model a job uses: the one that ships, one of that name, or the one KNOWN_HYPERMODEL names."""

import os
from pathlib import Path

from known_core.errors import KnownError

SHIPPED = "known-v0"
_WEIGHTS = Path(__file__).parent / "weights"


def hypermodel_path(name: str | None) -> Path:
    """The file of a hyper-model.

    Args:
        name: a shipped hyper-model's name; None is the server's own choice: the file KNOWN_HYPERMODEL names, else
            the one that ships.

    Raises:
        KnownError: ``hypermodel_unknown``.
    """
    chosen = os.environ.get("KNOWN_HYPERMODEL") if name is None else None
    path = Path(chosen) if chosen else _WEIGHTS / f"{name or SHIPPED}.safetensors"
    if path.is_file() and (chosen or name is None or name in shipped_hypermodels()):
        return path
    raise KnownError(
        "hypermodel_unknown",
        f"there is no hyper-model {chosen or str(name)[:80]!r}",
        f"Shipped: {shipped_hypermodels()}; or set KNOWN_HYPERMODEL to a .safetensors file.",
    ).at("/nowcast/hypermodel")


def shipped_hypermodels() -> list[str]:
    """The names of the hyper-models in known_core/weights."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))
