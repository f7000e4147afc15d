"""The work of a nowcast, shard by shard: tiles are read ahead, predicted, and written behind, here or in processes.

Nothing is ever in memory as a whole: the states are read in tiles of :data:`TILE` weights, predicted, and written into
space reserved in the outputs, while the next tiles are read. What a run takes in memory does not depend on the model.
"""

import copy
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from known_core.checkpoint import Checkpoint, TensorWriter
from known_core.checkpoint.dtypes import TORCH_DTYPES, all_finite, convert
from known_core.checkpoint.layout import Layout
from known_core.errors import KnownError
from known_core.hypermodel import HyperModel, KindNetworks
from known_core.kernels.choice import choose_engine
from known_core.kinds import Kind
from known_core.processes import die_with_parent, keep_memory, kill_pool
from known_core.streams import Behind, ahead

TILE = 1 << 20  # weights predicted together
_AHEAD = 3  # tiles read before they are needed
_BEHIND = 2  # tiles predicted and not yet written
_READERS = 2  # threads

Add = Callable[[int], None]


@dataclass(frozen=True)
class Tile:
    """A part of one tensor: the elements from begin to end.

    Attributes:
        kind: as what it is predicted; None where it is carried over.
        whole: whether it is all of the tensor.
    """

    name: str
    kind: Kind | None
    begin: int
    end: int
    whole: bool


@dataclass(frozen=True)
class ShardWork:
    """What every shard of a nowcast needs; travels to worker processes.

    Args:
        states: Θ_0 first.
        kinds: of the tensors that are predicted.
        layout: the files of an output.
        outputs: a folder for each step.
        rate: r of the trajectory.
    """

    states: Sequence[Checkpoint]
    known: HyperModel
    kinds: Mapping[str, Kind]
    layout: Layout
    outputs: Sequence[Path]
    rate: float

    def is_written(self, file: str) -> bool:
        """Whether the shard is whole in every output."""
        return all((output / file).is_file() for output in self.outputs)

    def size(self, file: str) -> int:
        """Bytes of the shard's tensors in one output."""
        return sum(info.end - info.begin for info in self.layout.shards[file].tensors.values())

    def write(self, file: str, add: Add) -> None:
        """Write one shard into every output, whole or not at all; one that is there already stays.

        Args:
            add: takes the bytes of Θ_0 that were done, tile by tile.

        Raises:
            KnownError: ``nonfinite_weights``, ``source_unreadable``.
            OSError: ENOSPC when the disk is full.
        """
        if self.is_written(file):  # by a helper
            add(self.size(file))
            return
        header, theta = self.layout.shards[file], self.states[0]
        tiles = [(stored, tile) for stored in header.tensors for tile in self._tiles(theta.logical_name(stored))]
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(_READERS))
            writers = [stack.enter_context(TensorWriter(output / file, header)) for output in self.outputs]
            behind = stack.enter_context(Behind(_BEHIND))
            whole: Tensor | None = None
            for (stored, tile), values in zip(tiles, self._read_ahead(pool, [t for _, t in tiles]), strict=True):
                info = theta.tensors[tile.name]
                if tile.kind is None:
                    predictions: Sequence[Tensor] = [values] * len(writers)
                else:
                    if tile.begin == 0:
                        again = [values] if tile.whole else _Again(self, tile.name, pool)
                        whole = self.known.survey(tile.kind, again, self.rate, len(writers))
                    predictions = self.known.predict(tile.kind, values, whole, self.rate, len(writers)).unbind()
                behind(partial(_write_tile, writers, stored, tile, predictions, TORCH_DTYPES[info.dtype]))
                add((tile.end - tile.begin) * info.itemsize)

    def _tiles(self, name: str) -> Iterator[Tile]:
        count = self.states[0].tensors[name].numel
        for begin in range(0, max(count, 1), TILE):
            yield Tile(name, self.kinds.get(name), begin, min(begin + TILE, count), count <= TILE)

    def _read_ahead(self, pool: Executor, tiles: Sequence[Tile]) -> Iterator[Tensor]:
        return ahead(pool, (partial(self._read, tile) for tile in tiles), _AHEAD)

    def _read(self, tile: Tile) -> Tensor:
        """(S, n) float32 of a tensor that is predicted, (n,) in its own dtype of one that is carried over."""
        if tile.kind is None:
            return self.states[0].read_finite(tile.name, tile.begin, tile.end)
        window = torch.empty(len(self.states), tile.end - tile.begin)
        for row, state in zip(window, self.states, strict=True):
            convert(state.read_finite(tile.name, tile.begin, tile.end), row)
        return window


class _Again:
    """All tiles of a tensor, read again each time they are gone through."""

    def __init__(self, work: ShardWork, name: str, pool: Executor) -> None:
        self._work, self._name, self._pool = work, name, pool

    def __iter__(self) -> Iterator[Tensor]:
        return self._work._read_ahead(self._pool, list(self._work._tiles(self._name)))


def _write_tile(
    writers: Sequence[TensorWriter], stored: str, tile: Tile, predictions: Sequence[Tensor], dtype: torch.dtype
) -> None:
    for writer, prediction in zip(writers, predictions, strict=True):
        part = prediction
        if tile.kind is not None:
            part = convert(prediction.cpu(), torch.empty(len(prediction), dtype=dtype))
            if not all_finite(part):
                raise KnownError(
                    "nonfinite_weights",
                    f"the prediction of {tile.name!r} is not finite in {dtype}",
                    "The states are finite, so the hyper-model is at fault: use another one, or fewer recurrences.",
                )
        writer.write_part(stored, tile.begin, part)


def write_shards(work: ShardWork, files: Sequence[str], workers: int, on_bytes: Callable[[int], None]) -> None:
    """Write shards here, or in ``workers`` processes.

    Args:
        on_bytes: takes the bytes of Θ_0 done since the start.

    Raises:
        KnownError: ``worker_died`` where a process was killed; whatever :meth:`ShardWork.write` raises.
    """
    if workers > 1 and len(files) > 1:
        _write_in_processes(work, files, workers, on_bytes)
        return
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done)

    for file in files:
        work.write(file, add)


def _write_in_processes(work: ShardWork, files: Sequence[str], workers: int, on_bytes: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = context.Value("i", 0)
    bytes_done = context.Array("Q", workers, lock=False)  # each worker its own: one that is killed holds up nobody
    threads = max(1, torch.get_num_threads() // workers)
    arguments = (_portable(work), threads, bytes_done, ranks)
    pool = ProcessPoolExecutor(min(workers, len(files)), context, _start_worker, arguments)
    try:
        left = {pool.submit(_write_in_worker, file) for file in files}
        while left:
            done, left = wait(left, timeout=0.2)
            on_bytes(sum(bytes_done))
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise KnownError(
            "worker_died",
            f"one of {workers} processes that write shards was killed, perhaps for its memory",
            "Run it again: finished shards are kept. Where memory ran out, with fewer workers.",
            retryable=True,
        ) from error
    finally:  # killed, also at the end: a process that died idle, with the queue's lock, would keep the others for ever
        kill_pool(pool)  # what they have under way will be written again


def _portable(work: ShardWork) -> ShardWork:
    """The same with the hyper-model in main memory: each worker moves it to a device of its own."""
    if isinstance(work.known, KindNetworks):
        return replace(work, known=copy.deepcopy(work.known).to("cpu"))
    return work


_add: Add  # of a worker process
_work: ShardWork


def _start_worker(work: ShardWork, threads: int, bytes_done: Any, ranks: Any) -> None:
    global _add, _work
    die_with_parent()
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    torch.set_num_threads(threads)
    with ranks.get_lock():
        rank, ranks.value = ranks.value, ranks.value + 1
    if isinstance(work.known, KindNetworks) and work.known.engine.device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        work.known.to(device).engine = choose_engine(device, work.known.engine.name)

    def add(count: int) -> None:
        bytes_done[rank] += count

    _work, _add = work, add


def _write_in_worker(file: str) -> None:
    _work.write(file, _add)
