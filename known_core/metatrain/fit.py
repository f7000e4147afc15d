"""Fit KNOWN on collected trajectories, and say how well it predicts trajectories it never saw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from known_core.errors import KnownError
from known_core.files import canonical_json, read_json, sha256_bytes, write_json
from known_core.hypermodel import STATES, Known
from known_core.kinds import Kind, kind_of
from known_core.metatrain.collect import STATES as TRAJECTORY_STATES
from known_core.metatrain.collect import held_out

_SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_BATCH = 8192
_L1_ON_KERNELS = 1e-6  # paper, section 4.2
_SHRINKS = np.linspace(0.6, 1.1, 101)


def load_windows(folders: Sequence[Path], per_kind: int, seed: int) -> dict[Kind, Tensor]:
    """Windows with their targets, by kind.

    Args:
        folders: trajectories.
        per_kind: at most this many windows a kind from each trajectory, drawn at random.
        seed: of the draw.

    Returns:
        (N, 6) float32 for each kind: five states, most forgotten first, then the state before them.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[Kind, list[Tensor]] = {kind: [] for kind in get_args(Kind)}
    for folder in folders:
        of_kind = _trajectory_windows(folder)
        for kind, windows in of_kind.items():
            chosen = torch.randperm(len(windows), generator=generator)[:per_kind]
            parts[kind].append(windows[chosen])
    return {kind: torch.cat(windows) for kind, windows in parts.items()}


def _trajectory_windows(folder: Path) -> dict[Kind, Tensor]:
    states = []
    for index in range(TRAJECTORY_STATES):
        with safe_open(folder / f"state-{index}.safetensors", framework="pt") as file:
            states.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    shapes = {name: tuple(tensor.shape) for name, tensor in states[0].items()}
    windows: dict[Kind, list[Tensor]] = {}
    for name, tensor in states[0].items():
        kind = kind_of(name, shapes, _SAFETENSORS_NAMES.get(tensor.dtype, "other"))
        if kind is None:
            continue
        values = torch.stack([state[name].reshape(-1).float() for state in states], dim=1)  # (n, 7), Θ_0 first
        for target in range(TRAJECTORY_STATES - STATES):
            windows.setdefault(kind, []).append(values[:, target : target + STATES + 1].flip(1))
    return {kind: torch.cat(parts) for kind, parts in windows.items()}


def fit(
    trajectories: Path, name: str, out: Path, *, steps: int, per_kind: int, seed: int,
    on_step: Callable[[str, int, int], None] = lambda kind, step, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit one network a kind by L1 (paper, section 4.2) and write ``out/NAME.safetensors`` with its report.

    Args:
        trajectories: what :func:`~known_core.metatrain.collect.collect` made.
        steps: of Adam, a kind; batches of 8,192 windows, cosine from 2e-3.
        per_kind: windows a kind from each trajectory.

    Returns:
        The report: settings, and for each kind the skill on held-out trajectories,
        1 - |error| / |error of predicting Θ_0|, beside that of the best plain shrinkage fitted on the same data.

    Raises:
        KnownError: ``too_few_trajectories``.
    """
    folders = sorted(trajectories.glob("trajectory-*"))
    test_folders = [folder for folder in folders if held_out(folder)]
    train_folders = [folder for folder in folders if not held_out(folder)]
    if len(train_folders) < 2 or not test_folders:
        raise KnownError(
            "too_few_trajectories",
            f"{trajectories} has {len(folders)} trajectories, {len(test_folders)} of them held out",
            "Collect at least twenty: known metatrain collect.",
        )
    train = load_windows(train_folders, per_kind, seed)
    test = load_windows(test_folders, per_kind, seed)
    torch.manual_seed(seed)
    known = Known()
    kinds = {}
    for kind in get_args(Kind):
        _fit_kind(known, kind, train[kind], steps, seed, on_step)
        kinds[kind] = {"windows": len(train[kind]), "held_out_windows": len(test[kind])} | _skill(
            known, kind, train[kind], test[kind]
        )
    recipes = [read_json(folder / "trajectory.json") for folder in folders]
    report = {
        "name": name,
        "trajectories": len(train_folders),
        "held_out_trajectories": len(test_folders),
        "recipes_sha256": sha256_bytes(canonical_json(recipes)),
        "data": sorted({Path(recipe["data"]).stem for recipe in recipes}),
        "architectures": sorted({recipe["architecture"] for recipe in recipes}),
        "settings": {"steps": steps, "per_kind": per_kind, "seed": seed, "batch": _BATCH, "loss": "L1"},
        "kinds": kinds,
    }
    known.metadata = {"name": name, "recipes_sha256": str(report["recipes_sha256"])}
    known.save(out / f"{name}.safetensors")
    write_json(out / f"{name}.json", report)
    return report


def _fit_kind(
    known: Known, kind: Kind, windows: Tensor, steps: int, seed: int, on_step: Callable[[str, int, int], None]
) -> None:
    network = known.networks[kind]
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kernels = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # start as "predict Θ_0": the residual is small beside the weights
        for parameter in network.get_submodule("head").parameters():
            parameter.mul_(0.01)
    for step in range(steps):
        batch = windows[torch.randint(len(windows), (_BATCH,), generator=generator)]
        error = (batch[:, -2] + known.residual(kind, batch[:, :-1]) - batch[:, -1]).abs().mean()
        penalty = sum((kernel.abs().sum() for kernel in kernels), torch.zeros(()))
        optimizer.zero_grad()
        (error + _L1_ON_KERNELS * penalty).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(kind, step + 1, steps)


@torch.inference_mode()
def _skill(known: Known, kind: Kind, train: Tensor, test: Tensor) -> dict[str, float]:
    def error(predicted: Tensor, target: Tensor) -> float:
        return float((predicted - target).abs().mean())

    shrink = float(min(_SHRINKS, key=lambda factor: error(float(factor) * train[:, -2], train[:, -1])))
    baseline = error(test[:, -2], test[:, -1])
    predicted = torch.cat([part[:, -2] + known.residual(kind, part[:, :-1]) for part in torch.split(test, 1 << 16)])
    return {
        "error_of_theta_0": baseline,
        "skill": 1 - error(predicted, test[:, -1]) / baseline,
        "shrinkage_factor": shrink,
        "shrinkage_skill": 1 - error(shrink * test[:, -2], test[:, -1]) / baseline,
    }
