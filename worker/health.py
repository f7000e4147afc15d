"""Whether this machine's worker runs, for a container's health check: ``python -m worker.health``."""

import socket
import sys

from app.jobs.repository import JobRepository, connect
from worker.settings import WorkerSettings


def main() -> int:
    """Returns the exit status: 0 where a worker of it has said within its time that it runs."""
    machine = socket.gethostname()
    living = JobRepository(connect(WorkerSettings().redis_url)).workers()
    if any(name.rpartition(":")[0] == machine for name in living):
        return 0
    print(f"no worker of {machine} has been heard from", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
