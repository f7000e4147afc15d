"""The trainer: one job in a process of its own. ``python -m worker.trainer JOB_FOLDER EVENTS_FD DEVICE TEAM SHARDING``.

It knows the job's folder and nothing of Redis; it may die at any point, and is confined before it reads anything.
"""

import gc
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.jobs.settings import RUN
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.logs import configure_logs
from known_core.processes import keep_memory
from known_core.spec import JobSpec
from worker.isolation import LOOPBACK, Isolation, confine
from worker.messages import reporting, send

_log = logging.getLogger("known.trainer")
SPEC = "spec.json"


def main(folder: Path, events: int, device: str, team_size: int = 1, sharding: Any = "auto") -> int:
    """Run the job of ``folder``; returns the exit status: 0 for a result, 1 for an error.

    Args:
        device: what the request asks for: ``auto``, ``cuda`` or ``cpu``.
        team_size, sharding: of :class:`known_core.team.TeamWish`.
    """

    def work() -> dict[str, Any]:
        isolation = confine()
        keep_memory()
        from known_core.memory import peak_memory
        from known_core.pipeline import run
        from known_core.team import TeamWish

        _check_device(device)
        gc.collect()
        gc.freeze()  # accelerate collects garbage after every training: 0.7 s over all that is imported by now
        configure_logs()
        _log.info("%s", isolation or "isolation is off")
        facts = {"isolation": asdict(isolation) if isolation else None}
        wish = TeamWish(_possible(team_size, isolation), sharding)
        spec = JobSpec.model_validate(read_json(folder / SPEC))
        try:
            artifacts = run(spec, folder / RUN, lambda event: send(events, event), facts, wish)
        finally:
            send(events, {"type": "usage", **peak_memory()})
        report = read_json(artifacts / "report.json")
        return {"type": "result", "selected": report["selected"], "conclusion": report["conclusion"]}

    return reporting(events, work)


def _possible(team_size: int, isolation: Isolation | None) -> int:
    """How many processes are to train together: one where none was named and the machine gives them no network.

    Raises:
        KnownError: ``isolation_incomplete`` where several were asked for by number.
    """
    if team_size == 1 or isolation is None or LOOPBACK in isolation.mechanisms:
        return team_size
    why = isolation.reasons.get(LOOPBACK)
    if team_size > 1:
        raise KnownError(
            "isolation_incomplete",
            f"KNOWN_TEAM_SIZE is {team_size}, and processes that train together have no network of their own: {why}",
            "Start the worker as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, or set KNOWN_TEAM_SIZE=1.",
        )
    if why is not None:  # it was asked for: there are several GPUs
        _log.warning("one GPU of several is used: processes that train together have no network of their own: %s", why)
    return 1


def _check_device(device: str) -> None:
    """A machine may have a GPU that PyTorch cannot use. Raises: KnownError ``device_unavailable``."""
    from known_core.training import default_device

    if device == "cuda" and (found := default_device().type) != "cuda":
        raise KnownError(
            "device_unavailable",
            f"the request says device cuda, and PyTorch on this worker finds only {found}",
            'Ask for device "cpu"; the operator installs a PyTorch with CUDA, or sets KNOWN_QUEUES=cpu,control.',
        )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]))
