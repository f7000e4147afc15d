"""Several processes that train one network together: one for each GPU; on a CPU, as many as are asked for.

Each training of a stage gives all of them one batch of the recipe, each its part, so the result does not depend on how
many there are (docs/large-models.md). DDP: each holds the whole network. FSDP2: each holds its rows of every tensor.
"""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast

import torch

from known_core.errors import KnownError, ProcessDied
from known_core.processes import die_with_parent, keep_memory

Sharding = Literal["ddp", "fsdp"]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_DYING_S = 2.0  # from what the others hear until it has ended
_TIMEOUT = timedelta(minutes=30)  # of one exchange: the slowest is to wait for a rank that loads its part of a network


@dataclass(frozen=True)
class Rank:
    """One process of a team, seen from inside.

    Args:
        index: 0 to ``count`` - 1; 0 is the one that reports.
        sharded: whether the network is spread over the processes (FSDP2), else each has its own copy (DDP).
    """

    index: int
    count: int
    sharded: bool
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.index == 0

    def tell(self, *message: Any) -> None:
        """Send a message to whoever started the team; of all processes, the first one's count."""
        if self.leads:
            _channel.send(("told", message))


@dataclass(frozen=True)
class Team:
    """How many processes there are, and what each holds."""

    processes: int
    sharding: Sharding

    def run(
        self,
        work: Callable[Concatenate[Rank, Arguments], Result],
        on_message: Callable[..., None],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Call ``work(rank, ...)`` in every process, started for it and ended with it.

        Where one fails or dies, all are killed.

        Args:
            work: a function of a module; its arguments and result travel between processes.
            on_message: takes what the first process tells (:meth:`Rank.tell`).

        Returns:
            The first process's result.

        Raises:
            ProcessDied: where one was killed; whatever ``work`` raises.
        """
        with tempfile.TemporaryDirectory() as folder, ExitStack() as ended_with_it:
            threads = max(1, torch.get_num_threads() // self.processes)
            task = (self, threads, Path(folder) / "rendezvous", work, arguments, named)
            channels: dict[Connection, BaseProcess] = {}
            for index in range(self.processes):
                channel, process = _started(index, task)
                ended_with_it.callback(_end, process)  # whoever waits for one that failed
                ended_with_it.callback(channel.close)
                channels[channel] = process
            first, *_ = channels
            results: dict[Connection, Result] = {}
            while len(results) < self.processes:
                ready = connection.wait([channel for channel in channels if channel not in results])
                for channel in cast("list[Connection]", ready):
                    try:
                        kind, value = channel.recv()
                    except (EOFError, OSError):  # it ended, between two messages or within one
                        raise self._died() from None
                    if kind == "told":
                        on_message(*value)
                    elif kind == "result":
                        results[channel] = value
                    elif isinstance(value, KnownError) or not _was_killed(channels.values()):
                        raise value
                    else:
                        raise self._died() from value
            return results[first]

    def _died(self) -> ProcessDied:
        return ProcessDied(f"one of {self.processes} processes that trained together was killed")


def _started(index: int, task: tuple[Any, ...]) -> tuple[Connection, BaseProcess]:
    """A process that is one of a team, and where it says what it tells, and its end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with theirs:  # so that ours ends with the process
        process = context.Process(target=_as_rank, args=(theirs, index, *task), name=f"rank {index}")
        process.start()
    return ours, process


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _was_killed(processes: Collection[BaseProcess]) -> bool:
    """Whether one ended by a signal, perhaps just now: the others first hear that it has hung up."""
    deadline = time.monotonic() + _DYING_S
    while not any((process.exitcode or 0) < 0 for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


_channel: Connection  # of a process of a team


def _as_rank(
    channel: Connection,
    index: int,
    team: Team,
    threads: int,
    store: Path,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    """A process of a team, from its start to its end."""
    global _channel
    die_with_parent()
    keep_memory()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would set as many as there are cores
    _channel = channel
    try:
        channel.send(("result", _result(team, index, store, work, arguments, named)))
    except Exception as error:
        error.add_note(f"In process {index} of {team.processes}:\n{traceback.format_exc()}")
        channel.send(("error", _as_it_travels(error)))


def _as_it_travels(error: Exception) -> Exception:
    """Itself, or its words where another process could not rebuild it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made just now
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _result(
    team: Team, index: int, store: Path, work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", index) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    places = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": team.processes, "LOCAL_WORLD_SIZE": team.processes}
    os.environ |= {name: str(value) for name, value in places.items()}  # what accelerate reads
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # nothing leaves the machine
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{store}", rank=index, world_size=team.processes,
        timeout=_TIMEOUT, device_id=device if cuda else None,
    )  # fmt: skip
    result = work(Rank(index, team.processes, team.sharding == "fsdp", device), *arguments, **named)
    torch.distributed.destroy_process_group()  # not where it fails: the others would fail of that, and be heard first
    return result


@dataclass(frozen=True)
class TeamWish:
    """What the operator asks for.

    Args:
        processes: 0 is one for each GPU, and one on a CPU.
        sharding: auto is ``ddp`` where a network with its optimizer fits one GPU, else ``fsdp``.
    """

    processes: int = 1
    sharding: Literal["auto", "ddp", "fsdp"] = "auto"


def count_processes(wish: TeamWish, batch_size: int, smallest: int, devices: int) -> int:
    """How many processes train a job's stages.

    Args:
        batch_size: examples of a step.
        smallest: examples of the smallest subset.
        devices: GPUs that there are; 0 on a CPU.

    Raises:
        KnownError: ``processes_invalid`` where so many were asked for that some would have no GPU or no example.
    """
    most = min(batch_size, smallest)
    if not wish.processes:
        return max(1, min(devices, most))
    if devices and wish.processes > devices:
        raise _too_many(wish, f"this machine has {devices} GPUs", f"Set at most {devices}, or 0 for all of them.")
    if wish.processes > most:
        raise _too_many(
            wish,
            f"a step has {batch_size} examples, and the smallest subset {smallest}",
            f"Set at most {most}, give more examples, or set forgetting.batch_size higher.",
        )
    return wish.processes


def _too_many(wish: TeamWish, why: str, hint: str) -> KnownError:
    return KnownError(
        "processes_invalid", f"KNOWN_TEAM_SIZE is {wish.processes}, but {why}", hint
    )  # fmt: skip
