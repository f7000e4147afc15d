"""The fetcher: a job's inputs from the Hub into its folder. ``python -m worker.fetcher JOB_FOLDER EVENTS_FD``.

What to fetch, and with which token, stands on standard input. The spec in the folder is written again with what was
sampled of a data set that is too large.
"""

import json
import sys
from pathlib import Path
from typing import Any

from app.jobs.settings import HubAccess
from known_core.events import Reporter
from known_core.files import read_json, write_json
from known_core.logs import configure_logs
from known_core.spec import JobSpec
from worker.isolation import confine
from worker.messages import reporting, send
from worker.trainer import SPEC


def main(folder: Path, events: int) -> int:
    """Fetch what standard input names; returns the exit status: 0 when it is here, 1 for an error."""
    confine()
    configure_logs()
    asked = json.load(sys.stdin)
    from known_core.fetching import fetch_inputs
    from known_core.hub import HubRef

    def work() -> dict[str, Any]:
        reporter = Reporter(lambda event: send(events, event))
        reporter.phase("downloading")
        access = HubAccess.model_validate(asked["access"])
        refs = {name: HubRef(**ref) for name, ref in asked["refs"].items()}
        spec = JobSpec.model_validate(read_json(folder / SPEC))
        limit, hub = access.max_dataset_bytes, access.open()
        spec = fetch_inputs(spec, hub, refs, folder / "hub", max_dataset_bytes=limit, on_bytes=reporter.step)
        write_json(folder / SPEC, spec.model_dump(mode="json"))
        return {"type": "fetched"}

    return reporting(events, work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
