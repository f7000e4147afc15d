"""In the trainer's place: sleeps, writes a small result. ``python -m tests.fleet.stub FOLDER EVENTS_FD SECONDS``."""

import sys
import time
from pathlib import Path

from known_core.files import write_json
from worker.messages import send

SECONDS = "FLEET_STUB_SECONDS"  # in a worker's environment: how long


def main(events: int, seconds: float) -> int:
    send(events, {"type": "status", "status": "running"})
    send(events, {"type": "phase", "phase": "forgetting", "detail": "stub"})
    time.sleep(seconds)
    result = {"selected": "unchanged", "conclusion": "a stub"}
    Path("artifacts").mkdir(exist_ok=True)  # in the job's own folder
    write_json(Path("artifacts/report.json"), result)
    send(events, {"type": "result", **result})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2]), float(sys.argv[-1])))
