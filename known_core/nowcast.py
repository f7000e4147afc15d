"""From a window of five states to the predicted states (paper, sections 3.2 and 4): of a tensor, of state dicts in
memory, and of checkpoints of any size on disk."""

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from known_core.checkpoint import Checkpoint, check_same_tensors
from known_core.checkpoint.layout import Layout, same_layout, sharded_layout
from known_core.checkpoint.reader import INDEX, WEIGHTS
from known_core.errors import KnownError
from known_core.files import write_json
from known_core.hypermodel import HyperModel
from known_core.kinds import DTYPE_NAMES, Kind
from known_core.shards import TILE, ShardWork, write_shards


def predict_tensor(known: HyperModel, kind: Kind, states: Sequence[Tensor], rate: float, steps: int) -> list[Tensor]:
    """One tensor in memory, ``steps`` times.

    Args:
        states: as many tensors of one shape, any floating dtype and layout, Θ_0 first, then those of ever less data.
        rate: r of the trajectory.

    Returns:
        ``steps`` tensors of the same shape, float32, on the CPU: for 1/r, 1/r², … times the data.
    """
    window = torch.stack([state.detach().float().reshape(-1) for state in states])
    predictions = known.predict(kind, window, known.survey(kind, [window], rate, steps), rate, steps)
    return [prediction.cpu().reshape(states[0].shape) for prediction in predictions]


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
            of_tensor = predict_tensor(known, kind, [state[name] for state in states], rate, steps)
        for state, prediction in zip(predicted, of_tensor, strict=True):
            state[name] = prediction.to(tensor.dtype)
    return predicted


def nowcast(
    states: Sequence[Checkpoint],
    known: HyperModel,
    outputs: Sequence[Path],
    rate: float,
    *,
    max_shard_size: str | None = None,
    workers: int = 1,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the predicted checkpoints: ``outputs[0]`` for 1/r times the data, ``outputs[1]`` for 1/r², ….

    Each output keeps Θ_0's tensor names, order, dtypes and metadata, and its files unless ``max_shard_size`` is given;
    tensors without a kind and every file that is not weights are carried over from Θ_0. The bytes are the same
    whatever ``workers`` is.

    Args:
        states: as many checkpoints as the hyper-model reads, Θ_0 first: the trajectory of the hyper-model's design.
        outputs: folders; made where they are missing. A shard that is in all of them is taken as finished, so they are
            empty or what an interrupted run of the same call left.
        rate: r of the trajectory.
        max_shard_size: such as "5GB"; None keeps Θ_0's files.
        workers: processes, each with shards of its own; on CUDA they take the devices in turn.
        on_bytes: progress in bytes of Θ_0.

    Returns:
        The number of weights predicted by kind, and ``carried``.

    Raises:
        KnownError: ``states_count``, ``states_mismatch``, ``nonfinite_weights``, ``source_unreadable``, ``disk_full``,
            ``worker_died`` where one of several processes was killed.
    """
    work = plan_shards(states, known, outputs, rate, max_shard_size)
    try:
        for output in outputs:
            output.mkdir(parents=True, exist_ok=True)
            _carry_over_files(states[0], output, work.layout)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _disk_full(outputs[0], "the disk filled up while files were carried over") from error
    left = [file for file in work.layout.shards if not work.is_written(file)]
    _check_space(outputs[0], len(outputs) * sum(map(work.size, left)))
    total = sum(map(work.size, work.layout.shards))
    finished = total - sum(map(work.size, left))
    if finished:
        on_bytes(finished, total)
    try:
        write_shards(work, left, workers, lambda done: on_bytes(finished + done, total))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _disk_full(outputs[0], "the disk filled up while a shard was written") from error
    counts = {"conv": 0, "fc": 0, "bias": 0, "carried": 0}
    for name, info in states[0].tensors.items():
        counts[work.kinds.get(name, "carried")] += info.numel
    return counts


def help_nowcast(
    states: Sequence[Checkpoint],
    known: HyperModel,
    outputs: Sequence[Path],
    rate: float,
    *,
    max_shard_size: str | None = None,
    turn: int,
    helpers: int,
) -> int:
    """Write shards of a :func:`nowcast` that another process is at, which may be on another machine.

    That process goes through its shards from the first on. Each helper goes the other way, from a place of its own, and
    leaves out what is there: nobody waits for anybody, a helper that dies or comes late costs nothing, and the bytes
    are those of one process.

    Args:
        states, known, outputs, rate, max_shard_size: those of the nowcast.
        turn: which of the helpers this is, from 0 on.
        helpers: how many there are.

    Returns:
        How many shards it wrote.
    """
    work = plan_shards(states, known, outputs, rate, max_shard_size)
    files = list(work.layout.shards)
    begin = len(files) * (helpers - turn) // helpers
    written = 0
    for file in files[:begin][::-1] + files[begin:][::-1]:
        if not all(output.is_dir() for output in outputs):
            break  # the nowcast has ended
        if not work.is_written(file):
            try:
                work.write(file, lambda count: None)
            except FileNotFoundError:
                break  # it ended meanwhile
            written += 1
    return written


def plan_shards(
    states: Sequence[Checkpoint], known: HyperModel, outputs: Sequence[Path], rate: float, max_shard_size: str | None
) -> ShardWork:
    """What a :func:`nowcast` has to do, its inputs checked by their headers.

    Raises:
        KnownError: ``states_count``, ``states_mismatch``, ``option_invalid``.
    """
    if len(states) != known.states:
        raise KnownError("states_count", f"{len(states)} states given", f"Give {known.states}, the most recent first.")
    check_same_tensors(states, [f"state {index} ({state.name})" for index, state in enumerate(states)])
    layout = same_layout(states[0]) if max_shard_size is None else sharded_layout(states[0], max_shard_size)
    return ShardWork(states, known, predicted_kinds(states[0], known), layout, outputs, rate)


def predicted_kinds(checkpoint: Checkpoint, known: HyperModel) -> dict[str, Kind]:
    """The tensors that are predicted, and as what.

    A tensor that is stored again under another name (tied weights: an output layer that is the embedding) is treated
    as the one that is carried over, so that what was tied stays equal.
    """
    shapes = checkpoint.shapes
    kinds = {
        name: kind
        for name, info in checkpoint.tensors.items()
        if (kind := known.kind_of(name, shapes, info.dtype)) is not None
    }
    carried = [name for name in checkpoint.tensors if name not in kinds and len(shapes[name]) > 1]
    for name in list(kinds):
        info = checkpoint.tensors[name]
        for other in carried:
            alike = checkpoint.tensors[other]
            if (alike.shape, alike.dtype) == (info.shape, info.dtype) and _equal(checkpoint, name, other):
                del kinds[name]
                break
    return kinds


def _equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    count = checkpoint.tensors[name].numel
    return all(
        torch.equal(*(checkpoint.read_part(tensor, begin, min(begin + TILE, count)) for tensor in (name, other)))
        for begin in range(0, count, TILE)
    )


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if needed > free:
        raise _disk_full(output, f"{needed:,} bytes are to be written and {free:,} are free")


def _disk_full(output: Path, what: str) -> KnownError:
    return KnownError(
        "disk_full", f"no space is left at {output.parent}: {what}",
        "Free space and run it again: finished shards are kept.", retryable=True,
    )  # fmt: skip


def _carry_over_files(checkpoint: Checkpoint, output: Path, layout: Layout) -> None:
    """Every file that is not weights, and the index of the shards."""
    if not isinstance(checkpoint.location, Path) or checkpoint.location.is_dir():
        for name in checkpoint.source.names():
            # another file of weights is no finished shard, and loaders would take it for the prediction
            if name not in layout.replaced and name not in layout.shards and name != WEIGHTS:
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                with checkpoint.source.open(name) as source, (output / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    if layout.index is not None:
        write_json(output / INDEX, layout.index)
