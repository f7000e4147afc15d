"""The trainer reaches no secret, network or tenant: a probe in its place tries it, as root and as nobody."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from known_core.stack import Stack
from tests.worker.probe import Attempts, Duties
from tests.worker.probing import CANARY, SECRETS
from worker.isolation import import_path, uid_of

ROOT = Path(__file__).parents[2]
NOBODY = 65534
NEED_ROOT = {  # attempts that fail for an ordinary user on most machines, whatever is done against them
    "become_root", "environment_of_the_store", "memory_of_the_parent", "mount", "trace_the_supervisor",
}  # fmt: skip
NEVER = {"environment", "inherited_descriptors", "standard_input"}  # kept by how every process is started
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what isolates is Linux's")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a process another uid")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user reaches; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="known-") as made:
        Path(made).chmod(0o777)
        yield Path(made)


def names(tries: type) -> set[str]:
    return {name for name in vars(tries) if not name.startswith("_")}


def run_probe(folder: Path, stack: Stack, isolation: str, prefix: list[str]) -> dict[str, Any]:
    """What the probe found, started by a process with secrets in its environment."""
    environment = {**os.environ, **dict.fromkeys(SECRETS, CANARY), "PYTHONPATH": import_path()}
    environment["KNOWN_REDIS_URL"] = f"redis://{CANARY}@127.0.0.1/0"
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-m", "tests.worker.probing", str(folder), isolation, stack.store_url,
         str(stack.pids()["valkey"]), str(stack.port)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def as_nobody() -> list[str]:
    """A command that runs another one as nobody, in a place where nobody reaches this Python."""
    if os.geteuid() != 0:
        return []
    base = Path(sys.base_prefix).resolve()
    closed = [parent for parent in base.parents if not parent.stat().st_mode & stat.S_IXOTH]
    show = 'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --move /mnt "$1"'
    user = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all"
    script = f'{show if closed else "true"} && shift 2 && exec {user} "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(base), str(closed[-1] if closed else base)]


@as_root
def test_as_root_the_trainer_reaches_nothing(folder: Path, stack: Stack) -> None:
    found = run_probe(folder, stack, "auto", [])
    assert {name: got for name, got in found["attempts"].items() if got} == {}
    assert set(found["attempts"]) == names(Attempts)
    assert [name for name in names(Duties) if not found["duties"][name]] == [], found["log"]
    assert found["isolation"]["lacking"] == []
    assert {"netns", "mounts", "uid", "landlock", "seccomp"} <= set(found["isolation"]["mechanisms"])
    assert found["uid"] == found["owner_of_its_folder"] == uid_of("job_probe", 1_900_000_000)
    assert found["owner_afterwards"] == 0


def test_as_an_ordinary_user_the_trainer_reaches_nothing(folder: Path, stack: Stack) -> None:
    found = run_probe(folder, stack, "auto", as_nobody())
    assert {name: got for name, got in found["attempts"].items() if got} == {}
    assert set(found["attempts"]) == names(Attempts)
    assert [name for name in names(Duties) if not found["duties"][name]] == [], found["log"]
    assert found["isolation"]["lacking"] == []
    assert {"landlock", "scopes", "seccomp"} <= set(found["isolation"]["mechanisms"])
    assert set(found["isolation"]["reasons"]) == {"netns", "mounts", "uid"}


@as_root
def test_without_isolation_root_reaches_everything(folder: Path, stack: Stack) -> None:
    """So that the tests above can fail."""
    found = run_probe(folder, stack, "off", [])
    assert {name for name, got in found["attempts"].items() if got} >= names(Attempts) - NEVER - {"fork_bomb"}
    assert found["links_afterwards"] == []


def test_without_isolation_an_ordinary_user_reaches_what_is_that_user_s(folder: Path, stack: Stack) -> None:
    found = run_probe(folder, stack, "off", as_nobody())
    assert {name for name, got in found["attempts"].items() if got} >= names(Attempts) - NEVER - NEED_ROOT
    assert found["isolation"] is None
