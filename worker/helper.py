"""A helper: shards of another worker's nowcast, in a process of its own. ``python -m worker.helper FOLDER TURN OF``."""

import logging
import sys
from pathlib import Path

from app.jobs.settings import RUN
from known_core.errors import KnownError
from known_core.logs import configure_logs
from known_core.processes import keep_memory
from worker.isolation import confine

_log = logging.getLogger("known.helper")


def main(folder: Path, turn: int, helpers: int) -> int:
    """Returns the exit status: 0, or 1 where this machine cannot help; why stands in the job's log."""
    try:
        confine()
        configure_logs()
        keep_memory()
        from known_core.pipeline import help_run

        _log.info("helper %d of %d wrote %d shards", turn + 1, helpers, help_run(folder / RUN, turn, helpers))
    except KnownError as error:
        _log.error("helper %d of %d: %s", turn + 1, helpers, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
