"""From a window of five states to the predicted states, tensor by tensor (paper, sections 3.2 and 4)."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from known_core.checkpoint import Checkpoint, TensorWriter, check_same_tensors
from known_core.errors import KnownError
from known_core.files import atomic_folder
from known_core.hypermodel import STATES, Known
from known_core.kinds import Kind, kind_of

_CHUNK = 4_096  # weights a call; the fastest for eager PyTorch on a CPU (docs/experiments.md)


@torch.inference_mode()
def retrodict(known: Known, kind: Kind, states: Sequence[Tensor], recurrences: int) -> list[Tensor]:
    """Predict one tensor ``recurrences`` steps back; each prediction enters the next window.

    Args:
        known: the hyper-model; the work is done on its device.
        kind: which of its networks.
        states: five tensors of one shape, Θ_0 first, any floating dtype.
        recurrences: how many steps back.

    Returns:
        ``recurrences`` tensors of the same shape, float32, on the CPU: Θ_-1, Θ_-2, …
    """
    device = next(known.parameters()).device
    flat = [state.reshape(-1) for state in reversed(states)]
    predictions = [torch.empty(flat[0].numel(), dtype=torch.float32) for _ in range(recurrences)]
    for begin in range(0, flat[0].numel(), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        window = torch.stack([values[part].to(device, torch.float32) for values in flat], dim=1)
        for prediction in predictions:
            step = window[:, -1] + known.residual(kind, window)
            prediction[part] = step.cpu()
            window = torch.cat([window[:, 1:], step[:, None]], dim=1)
    return [prediction.reshape(states[0].shape) for prediction in predictions]


def nowcast(
    states: Sequence[Checkpoint],
    known: Known,
    outputs: Sequence[Path],
    *,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the predicted checkpoints: ``outputs[0]`` one step back, ``outputs[1]`` two, ….

    Each output keeps Θ_0's files, tensor names, order, dtypes and metadata; tensors without a kind and every file
    that is not weights are carried over from Θ_0.

    Args:
        states: five checkpoints, Θ_0 first, each trained from the one before it on a smaller subset.
        outputs: folders to create; none may exist. They appear together or not at all.
        on_bytes: progress in bytes of Θ_0.

    Returns:
        The number of weights predicted by kind, and ``carried``.

    Raises:
        KnownError: ``states_count``, ``states_mismatch``, ``output_exists``, ``nonfinite_weights``.
    """
    if len(states) != STATES:
        raise KnownError("states_count", f"{len(states)} states given", f"Give {STATES}, the most recent first.")
    for output in outputs:
        if output.exists():
            raise KnownError("output_exists", f"{output} exists already", "Name another folder, or remove it.")
    check_same_tensors(states, [f"state {index} ({state.path.name})" for index, state in enumerate(states)])
    first = states[0]
    shapes = first.shapes
    counts = {"conv": 0, "fc": 0, "bias": 0, "carried": 0}
    total = sum(info.end - info.begin for info in first.tensors.values())
    done = 0
    with ExitStack() as folders:
        targets = [folders.enter_context(atomic_folder(output)) for output in outputs]
        for target in targets:
            _copy_other_files(first, target)
        for file, header in first.headers.items():
            with ExitStack() as files:
                writers = [files.enter_context(TensorWriter(target / file, header)) for target in targets]
                for stored in header.tensors:
                    name = first.logical_name(stored)
                    info = first.tensors[name]
                    kind = kind_of(name, shapes, info.dtype)
                    theta = first.read_finite(name)
                    if kind is None:
                        predictions = [theta] * len(writers)
                    else:
                        history = [theta, *(state.read_finite(name) for state in states[1:])]
                        steps = retrodict(known, kind, history, len(writers))
                        predictions = [_finite(name, step.to(theta.dtype)) for step in steps]
                    counts[kind or "carried"] += info.numel
                    for writer, prediction in zip(writers, predictions, strict=True):
                        writer.write(stored, prediction)
                    done += info.end - info.begin
                    on_bytes(done, total)
    return counts


def _finite(name: str, prediction: Tensor) -> Tensor:
    if not torch.isfinite(prediction).all():
        raise KnownError(
            "nonfinite_weights",
            f"the prediction of {name!r} is not finite in {prediction.dtype}",
            "The states are finite, so the hyper-model is at fault: use another one, or fewer recurrences.",
        )
    return prediction


def _copy_other_files(checkpoint: Checkpoint, target: Path) -> None:
    if not checkpoint.path.is_dir():
        return
    for source in sorted(checkpoint.path.rglob("*")):
        name = source.relative_to(checkpoint.path)
        if source.is_file() and name.as_posix() not in checkpoint.headers:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
