"""A helper: shards of another worker's nowcast, in a process of its own. ``python -m worker.helper FOLDER TURN OF``."""

import sys
from pathlib import Path

from app.jobs.settings import RUN
from known_core.errors import KnownError
from known_core.processes import keep_memory
from worker.isolation import confine


def main(folder: Path, turn: int, helpers: int) -> int:
    """Returns the exit status: 0, or 1 where this machine cannot help; why stands in the job's log."""
    try:
        confine()
        keep_memory()
        from known_core.pipeline import help_run

        print(f"helper {turn + 1} of {helpers} wrote {help_run(folder / RUN, turn, helpers)} shards", flush=True)
    except KnownError as error:
        print(f"helper {turn + 1} of {helpers}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
