"""`known nowcast`: five checkpoints, on disk or at fsspec URLs, to predicted ones, with a manifest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import known_core
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.files import canonical_json, resumable_folder, sha256_bytes, sha256_file
from known_core.hypermodels import hypermodel_path, load_hypermodel, shipped_hypermodels
from known_core.manifest import write_manifest
from known_core.nowcast import nowcast, plan_shards
from known_core.spec import candidate_names
from known_core.training import default_device


def nowcast_files(
    states: Sequence[Path | str],
    out: Path,
    *,
    recurrences: int = 3,
    rate: float = 0.5,
    hypermodel: str | Path | None = None,
    max_shard_size: str | None = None,
    workers: int = 1,
    on_bytes: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Write ``out/x2``, ``out/x4``, … and ``out/manifest.json``.

    ``out`` appears when all of it is there. A run that was interrupted or killed, or whose disk filled up, goes on at
    the first unfinished shard when it is called again with the same inputs; its work is in a hidden folder beside it.

    Args:
        states: five safetensors files or folders, or URLs of them, Θ_0 (the most recent) first.
        rate: the trajectory's r, which names the outputs.
        hypermodel: the name of one that ships, or a file; None takes the server's own. It decides how the states are
            read: known-v1 wants a fan, known-paper a chain (:mod:`known_core.forgetting`).
        max_shard_size: of the outputs' files, such as "5GB"; None keeps Θ_0's files.
        workers: processes that share the shards out among them.
        on_bytes: progress of "hashing" the states (with a file each) and of "nowcasting" (in bytes of Θ_0).

    Returns:
        What the manifest says of inputs and outputs.

    Raises:
        KnownError: ``output_exists``, and what :func:`~known_core.nowcast.nowcast` and reading a checkpoint raise.
    """
    if out.exists():
        raise KnownError("output_exists", f"{out} exists already", "Name another folder, or remove it.")
    if hypermodel is None or hypermodel in shipped_hypermodels():
        path = hypermodel_path(None if hypermodel is None else str(hypermodel))
    else:
        path = Path(hypermodel)
    known = load_hypermodel(path, default_device())
    checkpoints = [Checkpoint(state, links=True) for state in states]  # folders of huggingface_hub's cache hold links
    names = candidate_names(rate, recurrences)
    plan_shards(checkpoints, known, [], rate, max_shard_size)  # what is wrong is said before hashing takes its time
    facts = {
        "inputs_sha256": _hashes(checkpoints, on_bytes),
        "outputs": names,
        "hypermodel": {"name": path.stem, "sha256": sha256_file(path), "design": known.design},
        "rate": rate,
        "max_shard_size": max_shard_size,
        "engine": known.engine.name,
    }
    key = sha256_bytes(canonical_json({"version": known_core.__version__, **facts}))[:16]
    with resumable_folder(out, key) as temporary:
        facts["weights_predicted"] = nowcast(
            checkpoints,
            known,
            [temporary / name for name in names],
            rate,
            max_shard_size=max_shard_size,
            workers=workers,
            on_bytes=lambda done, total: on_bytes("nowcasting", done, total),
        )
        write_manifest(temporary, facts)
    return facts


def _hashes(checkpoints: Sequence[Checkpoint], on_bytes: Callable[[str, int, int], None]) -> list[dict[str, str]]:
    """The sha256 of every file of weights, state by state."""
    files = [(checkpoint, file) for checkpoint in checkpoints for file in checkpoint.headers]
    total = sum(checkpoint.source.size(file) for checkpoint, file in files)
    hashes: list[dict[str, str]] = [{} for _ in checkpoints]
    done = 0
    on_bytes("hashing", done, total)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda pair: pair[0].sha256(pair[1]), files)
        owners = [index for index, checkpoint in enumerate(checkpoints) for _ in checkpoint.headers]
        for index, (checkpoint, file), digest in zip(owners, files, found, strict=True):
            hashes[index][file] = digest
            done += checkpoint.source.size(file)
            on_bytes("hashing", done, total)
    return hashes
