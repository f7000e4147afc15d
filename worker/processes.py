"""A job's processes: how each is started, with what it may know, and stopped with all that it started."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from app.jobs.settings import RUN
from known_core.logs import inherited
from worker.forkserver import Forked, ForkServer
from worker.isolation import confinement, hand_over, import_path
from worker.settings import WorkerSettings
from worker.trainer import SPEC

TEMPORARY = "tmp"  # in a process's folder, gone after it
_ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY", "KNOWN_HYPERMODEL", "KNOWN_ENGINE",
)  # fmt: skip
_NETWORK = (  # for the processes that talk to the Hub
    "HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_IMPORTS: tuple[str, ...] = ("known_core.pipeline", "known_core.report.html", "worker.isolation", "worker.messages")
_FORK_S = 0.4  # until a forked trainer has confined itself (docs/experiments.md)
Process = subprocess.Popen[bytes] | Forked
_fork_server: ForkServer | None = None


def start(
    command: list[str],
    folder: Path,
    settings: WorkerSettings,
    log: int,
    *descriptors: int,
    asked: Mapping[str, object] | None = None,
    reads: Iterable[Path] = (),
    writes: Iterable[Path] = (),
    team: bool = False,
) -> Process:
    """A module of ours in a process of its own, with nothing of this one's environment but what it needs.

    Without ``asked``, once :func:`ready` says so.

    Args:
        command: the module and its arguments.
        folder: the job's. Without ``asked`` the process can write in ``run`` below it only, which is then its user's.
        log: descriptor of what it prints.
        descriptors: that it keeps.
        asked: given to it on standard input; it then has the network.
        reads, writes: files and folders besides its own.
        team: whether it may start processes that talk to one another.

    Raises:
        ConnectionError: where the fork server was killed.
    """
    sandboxed = asked is None
    home = folder / RUN if sandboxed else folder
    temporary = home / TEMPORARY
    temporary.mkdir(parents=True, exist_ok=True)
    hypermodel = [Path(os.environ[name]) for name in ("KNOWN_HYPERMODEL",) if name in os.environ]
    confined = confinement(settings, folder.name, home, [folder / SPEC, *hypermodel, *reads], writes, sandboxed, team)
    if confined is not None and sandboxed:
        hand_over(home, confined.uid)
    environment = {
        **_environment(sandboxed),
        **inherited(),
        **(confined.environment() if confined is not None else {}),
        "HOME": str(home),
        "TMPDIR": str(temporary),
    }
    if sandboxed and _forks(settings):
        return _server().fork(command, home, environment, log, descriptors)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *command],
        stdin=subprocess.DEVNULL if sandboxed else subprocess.PIPE,
        stdout=log,
        stderr=log,
        cwd=home,
        env=environment,
        pass_fds=descriptors,
        start_new_session=True,
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin as pipe:  # one that died is seen where its messages end
            pipe.write(json.dumps(asked).encode())
    return process


def ready(settings: WorkerSettings, patience_s: float) -> bool:
    """Whether a sandboxed process can be started at once. The first call begins to import what it needs.

    Args:
        patience_s: how long to wait for that.

    Raises:
        ConnectionError: where it could not be imported; why is in this worker's log.
    """
    if not _forks(settings):
        return True
    if _fork_server is not None and _fork_server.was_killed:
        _close()
    try:
        return _server().ready(patience_s)
    except ConnectionError:
        _close()
        raise


def start_seconds(settings: WorkerSettings, alone_s: float) -> float:
    """From asking for a trainer until it begins with a job.

    Args:
        alone_s: of one that imports everything itself.
    """
    return _FORK_S if _forks(settings) else alone_s


def _forks(settings: WorkerSettings) -> bool:
    return settings.trainer_preload and sys.platform == "linux"


def _environment(sandboxed: bool) -> dict[str, str]:
    """What is the same for every job."""
    names = _ENVIRONMENT if sandboxed else (*_ENVIRONMENT, *_NETWORK)
    return {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning costs 2x to 8x where cores are shared (docs/experiments.md)
        **({"HF_HUB_OFFLINE": "1"} if sandboxed else {}),
        **{name: os.environ[name] for name in names if name in os.environ},
        "PYTHONPATH": import_path(),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _server() -> ForkServer:
    """The one of this process."""
    global _fork_server
    if _fork_server is None:
        _fork_server = ForkServer(_IMPORTS, _environment(sandboxed=True))
        atexit.register(_close)
    return _fork_server


def _close() -> None:
    global _fork_server
    if _fork_server is not None:
        _fork_server.close()
    _fork_server = None


def stop(process: Process, grace_s: float) -> None:
    """End the trainer and everything it started, also what it left behind: TERM, then KILL after ``grace_s``; KILL at
    once where that is 0."""
    for how, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, None))[0 if grace_s else 1 :]:
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
