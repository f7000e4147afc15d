"""From a window of five states to the predicted states, tensor by tensor (paper, sections 3.2 and 4)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from known_core.checkpoint import Checkpoint, TensorWriter, check_same_tensors
from known_core.errors import KnownError
from known_core.files import atomic_folder
from known_core.hypermodel import HyperModel
from known_core.kinds import DTYPE_NAMES


def predict_states(
    known: HyperModel, states: Sequence[Mapping[str, Tensor]], rate: float, steps: int
) -> list[dict[str, Tensor]]:
    """The same on state dicts in memory.

    Args:
        states: five, Θ_0 first: the trajectory of the hyper-model's design.
        rate: r of the trajectory.
        steps: how many predictions.

    Returns:
        ``steps`` state dicts, in Θ_0's dtypes: for 1/r, 1/r², … times the data.
    """
    theta = states[0]
    shapes = {name: tuple(tensor.shape) for name, tensor in theta.items()}
    predicted: list[dict[str, Tensor]] = [{} for _ in range(steps)]
    for name, tensor in theta.items():
        kind = known.kind_of(name, shapes, DTYPE_NAMES.get(tensor.dtype, "other"))
        if kind is None:
            of_tensor = [tensor.clone() for _ in range(steps)]
        else:
            of_tensor = known.predict(kind, [state[name] for state in states], rate, steps)
        for state, prediction in zip(predicted, of_tensor, strict=True):
            state[name] = prediction.to(tensor.dtype)
    return predicted


def nowcast(
    states: Sequence[Checkpoint],
    known: HyperModel,
    outputs: Sequence[Path],
    rate: float,
    *,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the predicted checkpoints: ``outputs[0]`` for 1/r times the data, ``outputs[1]`` for 1/r², ….

    Each output keeps Θ_0's files, tensor names, order, dtypes and metadata; tensors without a kind and every file
    that is not weights are carried over from Θ_0.

    Args:
        states: as many checkpoints as the hyper-model reads, Θ_0 first: the trajectory of the hyper-model's design.
        outputs: folders to create; none may exist. They appear together or not at all.
        rate: r of the trajectory.
        on_bytes: progress in bytes of Θ_0.

    Returns:
        The number of weights predicted by kind, and ``carried``.

    Raises:
        KnownError: ``states_count``, ``states_mismatch``, ``output_exists``, ``nonfinite_weights``.
    """
    if len(states) != known.states:
        raise KnownError("states_count", f"{len(states)} states given", f"Give {known.states}, the most recent first.")
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
                    kind = known.kind_of(name, shapes, info.dtype)
                    theta = first.read_finite(name)
                    if kind is None:
                        predictions = [theta] * len(writers)
                    else:
                        history = [theta, *(state.read_finite(name) for state in states[1:])]
                        steps = known.predict(kind, history, rate, len(writers))
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
