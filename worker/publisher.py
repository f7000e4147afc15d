"""The publisher: a job's result to the Hub. ``python -m worker.publisher JOB_FOLDER EVENTS_FD``.

Where to, and with which token, stands on standard input.
"""

import json
import sys
from pathlib import Path
from typing import Any

from app.jobs.settings import RUN, HubAccess
from known_core.events import Reporter
from known_core.logs import configure_logs
from known_core.spec import HubTarget
from worker.isolation import confine
from worker.messages import reporting, send


def main(folder: Path, events: int) -> int:
    """Publish what standard input names; returns the exit status: 0 when it is there, 1 for an error."""
    confine()
    configure_logs()
    asked = json.load(sys.stdin)
    from known_core.publish import publish

    def work() -> dict[str, Any]:
        reporter = Reporter(lambda event: send(events, event))
        reporter.phase("publishing")
        access, target = HubAccess.model_validate(asked["access"]), HubTarget.model_validate(asked["target"])
        there = publish(
            folder / RUN / "artifacts",
            asked["candidate"],
            target,
            endpoint=access.endpoint,
            token=access.secret,
            on_bytes=reporter.step,
        )
        return {"type": "published", "hub_url": there.url, "commit": there.commit, "pr_url": there.pr_url}

    return reporting(events, work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
