"""Which hyper-model a job uses: the one that ships, one of that name, or the one KNOWN_HYPERMODEL names."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from known_core.errors import KnownError
from known_core.hypermodel import Known
from known_core.kernels.choice import choose_engine
from known_core.kinds import Kind
from known_core.scale_free import ScaleFreeKnown

SHIPPED = "known-v1"
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


def load_hypermodel(path: Path, device: torch.device | str = "cpu") -> Known | ScaleFreeKnown:
    """A hyper-model of either design, with the engine for the device.

    Args:
        path: a file; a folder is the authors' three .h5 files (needs the ``keras`` extra).

    Raises:
        KnownError: ``hypermodel_invalid``, ``engine_unavailable``.
    """
    known = _load(path).to(device)
    known.engine = choose_engine(device)
    return known


def _load(path: Path) -> Known | ScaleFreeKnown:
    if path.is_dir():
        names: dict[Kind, str] = {"conv": "KNOWN_Conv.h5", "fc": "KNOWN_FC.h5", "bias": "KNOWN_Bias.h5"}
        return Known.from_keras({kind: path / name for kind, name in names.items()})
    try:
        with safe_open(path, framework="pt") as file:
            layout = (file.metadata() or {}).get("known")
    except (OSError, SafetensorError):
        layout = None  # Known.load says what is wrong
    return ScaleFreeKnown.load(path) if layout == ScaleFreeKnown.file_format else Known.load(path)
