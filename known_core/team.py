"""Several processes that train one network together: one for each GPU; on a CPU, as many as are asked for.

Each training of a stage gives all of them one batch of the recipe, each its part, so the result does not depend on how
many there are (docs/large-models.md). DDP: each holds the whole network. FSDP2: each holds its rows of every tensor.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch

from known_core.errors import KnownError, ProcessDied
from known_core.processes import die_with_parent, keep_memory, kill_pool

Sharding = Literal["ddp", "fsdp"]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_POLL_S = 0.2
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
            _messages.put(message)


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
        context = multiprocessing.get_context("spawn")
        messages = context.SimpleQueue()
        threads = max(1, torch.get_num_threads() // self.processes)
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(self.processes, context, _start, (messages, threads)) as pool,
        ):
            store = Path(folder) / "rendezvous"
            futures = [
                pool.submit(_as_rank, self, index, store, work, arguments, named) for index in range(self.processes)
            ]
            processes = list((pool._processes or {}).values())
            left = set(futures)
            try:
                while left:
                    done, left = wait(left, _POLL_S, FIRST_COMPLETED)
                    while not messages.empty():
                        on_message(*messages.get())
                    for future in done:
                        future.result()
            except Exception as error:
                if isinstance(error, KnownError) or not _was_killed(processes):
                    raise
                raise ProcessDied(f"one of {self.processes} processes that trained together was killed") from error
            finally:
                kill_pool(pool)  # whoever waits: for one that failed, or, after one that was killed, for its lock
            return futures[0].result()


def _was_killed(processes: Sequence[BaseProcess]) -> bool:
    """Whether one ended by a signal, perhaps just now: the others first hear that it has hung up."""
    connection.wait([process.sentinel for process in processes], timeout=1)
    return any((process.exitcode or 0) < 0 for process in processes)


_messages: Any  # of a process of a team


def _start(messages: Any, threads: int) -> None:
    global _messages
    die_with_parent()
    keep_memory()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would set as many as there are cores
    _messages = messages


def _as_rank(
    team: Team,
    index: int,
    store: Path,
    work: Callable[..., Result],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> Result:
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
