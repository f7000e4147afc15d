"""The trainer: one job in a process of its own. ``python -m worker.trainer JOB_FOLDER EVENTS_FD DEVICE``.

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
from worker.isolation import confine
from worker.messages import reporting, send

_log = logging.getLogger("known.trainer")
SPEC = "spec.json"


def main(folder: Path, events: int, device: str) -> int:
    """Run the job of ``folder``; returns the exit status: 0 for a result, 1 for an error.

    Args:
        device: what the request asks for: ``auto``, ``cuda`` or ``cpu``.
    """

    def work() -> dict[str, Any]:
        isolation = confine()
        keep_memory()
        from known_core.memory import peak_memory
        from known_core.pipeline import run

        _check_device(device)
        gc.collect()
        gc.freeze()  # accelerate collects garbage after every training: 0.7 s over all that is imported by now
        configure_logs()
        _log.info("%s", isolation or "isolation is off")
        facts = {"isolation": asdict(isolation) if isolation else None}
        spec = JobSpec.model_validate(read_json(folder / SPEC))
        try:
            artifacts = run(spec, folder / RUN, lambda event: send(events, event), facts)
        finally:
            send(events, {"type": "usage", **peak_memory()})
        report = read_json(artifacts / "report.json")
        return {"type": "result", "selected": report["selected"], "conclusion": report["conclusion"]}

    return reporting(events, work)


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
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
