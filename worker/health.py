"""Whether this machine's worker runs, for a container's health check: ``python -m worker.health``."""

import socket
import sys

from app.jobs.repository import JobRepository, connect
from worker.settings import WorkerSettings


def main() -> int:
    """Returns the exit status: 0 where the worker has said within its time that it runs."""
    name = socket.gethostname()
    if JobRepository(connect(WorkerSettings().redis_url)).worker_is_alive(name):
        return 0
    print(f"no worker of {name} has been heard from", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
