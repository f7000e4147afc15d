"""The trainer: one job in a process of its own. ``python -m worker.trainer JOB_FOLDER EVENTS_FD``.

It knows the job's folder and nothing of Redis; it may die at any point.
"""

import gc
import sys
from pathlib import Path
from typing import Any

from known_core.files import read_json
from known_core.processes import die_with_parent, keep_memory
from known_core.spec import JobSpec
from worker.messages import reporting, send

SPEC = "spec.json"


def main(folder: Path, events: int) -> int:
    """Run the job of ``folder``; returns the exit status: 0 for a result, 1 for an error."""
    die_with_parent()
    keep_memory()
    from known_core.pipeline import run

    gc.collect()
    gc.freeze()  # accelerate collects garbage after every training: 0.7 s over all that is imported by now

    def work() -> dict[str, Any]:
        spec = JobSpec.model_validate(read_json(folder / SPEC))
        report = read_json(run(spec, folder, lambda event: send(events, event)) / "report.json")
        return {"type": "result", "selected": report["selected"], "conclusion": report["conclusion"]}

    return reporting(events, work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
