"""The trainer: one job in a process of its own. ``python -m worker.trainer JOB_FOLDER EVENTS_FD``.

It knows the job's folder and nothing of Redis; it may die at any point.
"""

import sys
import traceback
from pathlib import Path

from known_core.errors import KnownError
from known_core.files import read_json
from known_core.processes import die_with_parent, keep_memory
from known_core.spec import JobSpec
from worker.messages import error_message, send

SPEC = "spec.json"


def main(folder: Path, events: int) -> int:
    """Run the job of ``folder``; returns the exit status: 0 for a result, 1 for an error."""
    die_with_parent()
    keep_memory()
    from known_core.pipeline import run

    try:
        artifacts = run(JobSpec.model_validate(read_json(folder / SPEC)), folder, lambda event: send(events, event))
        report = read_json(artifacts / "report.json")
    except KnownError as error:
        print(error, file=sys.stderr)
        send(events, error_message(error))
        return 1
    except Exception as error:  # a bug: the job fails with its name, the log has the rest
        traceback.print_exc()
        unexpected = KnownError(
            "internal_error", f"{type(error).__name__}: {error}", "This is a bug in known; the job's log has the trace."
        )
        send(events, error_message(unexpected))
        return 1
    send(events, {"type": "result", "selected": report["selected"], "conclusion": report["conclusion"]})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
