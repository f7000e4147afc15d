"""What processes of a team do in the quick tests of tests/known_core/test_team.py; they import torch alone."""

import os
import signal
from pathlib import Path

import torch

from known_core.errors import KnownError
from known_core.team import Rank


def adds(rank: Rank, begin: float) -> tuple[float, int]:
    """The sum of ``begin`` plus each one's index, by gloo; and how many threads there are."""
    rank.tell("begun", rank.count)
    total = torch.tensor(begin + rank.index)
    torch.distributed.all_reduce(total)
    return float(total), torch.get_num_threads()


def dies(rank: Rank, pids: Path) -> None:
    (pids / str(rank.index)).write_text(str(os.getpid()))
    torch.distributed.barrier()
    if not rank.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()  # never comes to an end


class Odd(Exception):
    """It can be sent, and not be rebuilt."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


def fails_oddly(rank: Rank, pids: Path) -> None:
    (pids / str(rank.index)).write_text(str(os.getpid()))
    raise Odd("number", rank.index)


def fails(rank: Rank, pids: Path) -> None:
    (pids / str(rank.index)).write_text(str(os.getpid()))
    if not rank.leads:
        raise KnownError("training_diverged", "as one of them says", "Lower it.")
    torch.distributed.barrier()
