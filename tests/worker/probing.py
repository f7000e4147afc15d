"""In the supervisor's place: starts the probe as the supervisor starts the trainer, beside things to be kept from it.

``python -m tests.worker.probing FOLDER ISOLATION STORE_URL STORE_PID API_PORT TEAM_SIZE`` prints its findings as JSON.
"""

import json
import os
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker import processes
from worker.isolation import take_back
from worker.processes import ready, start, stop
from worker.settings import WorkerSettings

processes._IMPORTS = ()  # a probe needs none of them, and they take seconds
CANARY = "canary-3f9a1c"
SECRETS = ("KNOWN_REDIS_URL", "KNOWN_HUB_TOKEN", "KNOWN_SECRET_KEY", "HF_TOKEN")
FILE_BYTES = 8 << 20
PROCESSES = 200  # of the user nobody, and of a uid of its own


def settings_of(folder: Path, isolation: Any, team_size: int) -> WorkerSettings:
    return WorkerSettings(
        team_size=team_size,
        data_dir=folder / "data",
        isolation=isolation,
        trainer_reads=str(Path(__file__).parent),
        trainer_file_bytes=FILE_BYTES,
        trainer_processes=PROCESSES,
    )


def _runs(status: Path) -> bool:
    """Whether a process runs; its status is "Z" once it has ended and nobody has asked."""
    try:
        return status.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def results_of(job: Path) -> dict[str, Any]:
    return dict(json.loads((job / "run" / "results.json").read_text()))


def probe(folder: Path, settings: WorkerSettings, store_port: int, store_pid: int, api_port: int) -> dict[str, Any]:
    """Returns: what the probe wrote, and whether the file that is its input is as it was."""
    data = settings.data
    places = {
        "secret_key": data / "secret.key",
        "neighbour": data / "jobs" / "job_neighbour" / "run" / "result",
        "upload": data / "uploads" / "local" / "upl_mine" / "content",
        "other_upload": data / "uploads" / "other" / "upl_theirs" / "content",
        "home": folder / "home" / ".netrc",
        "beside_the_source": folder / "source" / ".env",
        "theirs": folder / "outside" / "theirs",
    }
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(CANARY)
    (folder / "outside").chmod(0o777)
    (folder / "source" / "worker").mkdir()
    sys.path.append(str(folder / "source"))  # as a checkout that a worker is started in: listed, not read
    shared = Path("/dev/shm") / f"known-{os.getpid()}"
    job = settings.job_folder("job_probe")
    job.mkdir(parents=True)
    arrived = b""
    with ExitStack() as open_while_it_runs:
        listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for listener, address in zip(listeners, [str(folder / "unix"), f"\0known-{os.getpid()}"], strict=True):
            open_while_it_runs.enter_context(listener).bind(address)
            listener.listen()
        (folder / "unix").chmod(0o777)
        udp = open_while_it_runs.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        inherited = open_while_it_runs.enter_context((folder / f"{CANARY}.txt").open("w"))
        os.set_inheritable(inherited.fileno(), True)
        shared.write_text(CANARY)
        open_while_it_runs.callback(shared.unlink)
        targets = {name: str(place) for name, place in places.items()} | {
            "canary": CANARY, "store_port": store_port, "store_pid": store_pid, "api_port": api_port,
            "udp_port": udp.getsockname()[1], "unix": str(folder / "unix"), "abstract": f"known-{os.getpid()}",
            "jobs": str(data / "jobs"), "outside": str(folder / "outside"), "shared": shared.name,
            "file_bytes": FILE_BYTES, "processes": PROCESSES,
        }  # fmt: skip
        (job / "spec.json").write_text(json.dumps(targets))
        log = open_while_it_runs.enter_context((job / "log.txt").open("ab"))
        read_end, write_end = os.pipe()
        command = ["tests.worker.probe", str(job), str(write_end)]
        team = settings.has_teams(0)
        assert ready(settings, 30)
        process = start(command, job, settings, log.fileno(), write_end, reads=[places["upload"]], team=team)
        os.close(write_end)
        os.read(read_end, 1)  # until it has ended
        os.close(read_end)
        process.wait()
        stop(process, 1)
        udp.setblocking(False)
        with suppress(BlockingIOError):
            arrived = udp.recv(1)
    outlives = Path(f"/proc/{results_of(job)['left_behind']}/stat")
    deadline = time.monotonic() + 10
    while (left := _runs(outlives)) and time.monotonic() < deadline:
        time.sleep(0.05)
    owner = (job / "run").stat().st_uid
    take_back(job / "run")
    return results_of(job) | {
        "left_behind": left,
        "owner_of_its_folder": owner,
        "owner_afterwards": {path.lstat().st_uid for path in (job / "run").rglob("*")}.pop(),
        "udp_arrived": bool(arrived),
        "links_afterwards": [str(path) for path in job.rglob("*") if path.is_symlink()],
        "log": (job / "log.txt").read_text() if (job / "log.txt").exists() else "",
    }


if __name__ == "__main__":
    where = Path(sys.argv[1])
    port = urlsplit(sys.argv[3]).port
    assert port is not None
    found = probe(where, settings_of(where, sys.argv[2], int(sys.argv[6])), port, int(sys.argv[4]), int(sys.argv[5]))
    print(json.dumps(found))
