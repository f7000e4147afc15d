"""`known nowcast`: five checkpoints on disk to predicted ones, with a manifest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.files import atomic_folder, sha256_file
from known_core.hypermodels import hypermodel_path, load_hypermodel, shipped_hypermodels
from known_core.manifest import write_manifest
from known_core.nowcast import nowcast
from known_core.spec import candidate_names
from known_core.training import default_device


def nowcast_files(
    states: Sequence[Path],
    out: Path,
    *,
    recurrences: int = 3,
    rate: float = 0.5,
    hypermodel: str | Path | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``out/x2``, ``out/x4``, … and ``out/manifest.json``; all of it or nothing.

    Args:
        states: five safetensors files or folders, Θ_0 (the most recent) first.
        rate: the trajectory's r, which names the outputs.
        hypermodel: the name of one that ships, or a file; None takes the server's own. It decides how the states are
            read: known-v1 wants a fan, known-paper a chain (:mod:`known_core.forgetting`).

    Returns:
        What the manifest says of inputs and outputs.

    Raises:
        KnownError: ``output_exists``, ``states_count``, ``states_mismatch``, and what reading a checkpoint raises.
    """
    if out.exists():
        raise KnownError("output_exists", f"{out} exists already", "Name another folder, or remove it.")
    if hypermodel is None or hypermodel in shipped_hypermodels():
        path = hypermodel_path(None if hypermodel is None else str(hypermodel))
    else:
        path = Path(hypermodel)
    known = load_hypermodel(path, default_device())
    checkpoints = [Checkpoint(state) for state in states]
    names = candidate_names(rate, recurrences)
    with atomic_folder(out) as temporary:
        counts = nowcast(checkpoints, known, [temporary / name for name in names], rate, on_bytes=on_bytes)
        facts = {
            "inputs_sha256": [
                {file: sha256_file(checkpoint.file_path(file)) for file in checkpoint.headers}
                for checkpoint in checkpoints
            ],
            "outputs": names,
            "hypermodel": {"name": path.stem, "sha256": sha256_file(path), "design": known.design},
            "weights_predicted": counts,
            "rate": rate,
        }
        write_manifest(temporary, facts)
    return facts
