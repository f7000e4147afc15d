"""The publisher: a job's result to the Hub. ``python -m worker.publisher JOB_FOLDER EVENTS_FD``.

Where to, and with which token, stands on standard input.
"""

import json
import sys
from pathlib import Path

from app.jobs.settings import HubAccess
from known_core.errors import KnownError
from known_core.events import Reporter
from known_core.processes import die_with_parent
from known_core.spec import HubTarget
from worker.messages import error_message, send


def main(folder: Path, events: int) -> int:
    """Publish what standard input names; returns the exit status: 0 when it is there, 1 for an error."""
    die_with_parent()
    asked = json.load(sys.stdin)
    from known_core.publish import publish

    reporter = Reporter(lambda event: send(events, event))
    reporter.phase("publishing")
    access = HubAccess.model_validate(asked["access"])
    try:
        there = publish(
            folder / "artifacts", asked["candidate"], HubTarget.model_validate(asked["target"]),
            endpoint=access.endpoint, token=access.secret, on_bytes=reporter.step,
        )  # fmt: skip
    except KnownError as error:
        print(error, file=sys.stderr)
        send(events, error_message(error))
        return 1
    send(events, {"type": "published", "hub_url": there.url, "commit": there.commit, "pr_url": there.pr_url})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
