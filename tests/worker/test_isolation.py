"""The trainer reaches no secret, network or tenant: a probe in its place tries it, as root and as nobody."""

import json
import os
import shutil
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
from worker.isolation import hand_over, import_path, take_back, uid_of

ROOT = Path(__file__).parents[2]
NOBODY = 65534
NEED_ROOT = {  # attempts that fail for an ordinary user on most machines, whatever is done against them
    "become_root", "environment_of_the_store", "memory_of_the_parent", "mount", "trace_the_supervisor",
}  # fmt: skip
TEAM_ALONE = ["talk_to_one_another"]  # what only the processes of a team have to be able to do
NEVER = {  # kept by how every process is started
    "environment", "environment_of_the_parent", "inherited_descriptors", "standard_input",
}  # fmt: skip
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


def run_probe(folder: Path, stack: Stack, isolation: str, prefix: list[str], team_size: int = 1) -> dict[str, Any]:
    """What the probe found, started by a process with secrets in its environment."""
    environment = {**os.environ, **dict.fromkeys(SECRETS, CANARY), "PYTHONPATH": import_path()}
    environment["KNOWN_REDIS_URL"] = f"redis://{CANARY}@127.0.0.1/0"
    done = subprocess.run(
        [*prefix, sys.executable, "-P", "-m", "tests.worker.probing", str(folder), isolation, stack.store_url,
         str(stack.pids()["valkey"]), str(stack.port), str(team_size)],
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
    assert [name for name in names(Duties) if not found["duties"][name]] == TEAM_ALONE, found["log"]
    assert found["isolation"]["lacking"] == []
    assert {"netns", "mounts", "uid", "landlock", "seccomp"} <= set(found["isolation"]["mechanisms"])
    assert found["uid"] == found["owner_of_its_folder"] == uid_of("job_probe", 1_900_000_000)
    assert found["owner_afterwards"] == 0
    assert not found["left_behind"]


@as_root
def test_processes_of_a_team_talk_to_one_another_alone(folder: Path, stack: Stack) -> None:
    """A datagram is sent, on an interface of their own: it does not arrive outside."""
    found = run_probe(folder, stack, "auto", [], team_size=2)
    assert {name: got for name, got in found["attempts"].items() if got} == {"udp": "1"}
    assert not found["udp_arrived"]
    assert [name for name in names(Duties) if not found["duties"][name]] == [], found["log"]
    assert found["isolation"]["lacking"] == []
    assert "loopback" in found["isolation"]["mechanisms"]


def test_as_an_ordinary_user_the_trainer_reaches_nothing(folder: Path, stack: Stack) -> None:
    found = run_probe(folder, stack, "auto", as_nobody())
    assert {name: got for name, got in found["attempts"].items() if got} == {}
    assert set(found["attempts"]) == names(Attempts)
    assert [name for name in names(Duties) if not found["duties"][name]] == TEAM_ALONE, found["log"]
    assert found["isolation"]["lacking"] == []
    assert {"landlock", "scopes", "seccomp"} <= set(found["isolation"]["mechanisms"])
    assert set(found["isolation"]["reasons"]) == {"netns", "mounts", "uid"}
    assert not found["left_behind"]


@as_root
def test_without_isolation_root_reaches_everything(folder: Path, stack: Stack) -> None:
    """So that the tests above can fail."""
    found = run_probe(folder, stack, "off", [])
    assert {name for name, got in found["attempts"].items() if got} >= names(Attempts) - NEVER - {"fork_bomb"}
    assert found["links_afterwards"] == []


@pytest.mark.slow
def test_without_isolation_an_ordinary_user_reaches_what_is_that_user_s(folder: Path, stack: Stack) -> None:
    found = run_probe(folder, stack, "off", as_nobody())
    assert {name for name, got in found["attempts"].items() if got} >= names(Attempts) - NEVER - NEED_ROOT
    assert found["isolation"] is None


def python(script: str, *arguments: str, prefix: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*(prefix or []), sys.executable, "-P", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": import_path()}, cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip


WITHOUT_LANDLOCK = """
import sys
from pathlib import Path
from worker.isolation import _no_dumps, check
from worker.linux.seccomp import refuse_calls
from worker.settings import WorkerSettings
_no_dumps()
refuse_calls(["landlock_create_ruleset"])  # as on a kernel that has none
print(check(WorkerSettings(data_dir=Path(sys.argv[1]), isolation=sys.argv[2])))
"""


def test_what_a_machine_cannot_do_is_said_and_refused_where_it_is_required(folder: Path) -> None:
    said = python(WITHOUT_LANDLOCK, str(folder), "auto", prefix=as_nobody())
    assert "nothing protects files, processes, signals" in said.stdout, said.stderr
    assert "landlock_create_ruleset: Operation not permitted" in said.stdout
    refused = python(WITHOUT_LANDLOCK, str(folder), "required", prefix=as_nobody())
    assert refused.returncode != 0
    assert "isolation_incomplete" in refused.stderr
    assert python(WITHOUT_LANDLOCK, str(folder), "off", prefix=as_nobody()).stdout == "None\n"


MEMORY = """
import resource, sys
from pathlib import Path
import numpy, torch
from known_core.errors import KnownError
from known_core.shortage import said_clearly
from worker.isolation import Limits, _limit
_limit(Limits(file_bytes=1 << 20, memory_bytes=4 << 30))
def write():
    with open(sys.argv[1], "wb") as stream:
        stream.write(bytes(2 << 20))
for exhaust in (lambda: torch.empty(8 << 30, dtype=torch.uint8), lambda: numpy.ones(8 << 30, numpy.uint8), write):
    try:
        with said_clearly(Path("job")):
            exhaust()
    except KnownError as error:
        print(error.code)
"""


def test_a_process_that_meets_its_limits_says_so(tmp_path: Path) -> None:
    done = python(MEMORY, str(tmp_path / "large"))
    assert done.stdout.split() == ["out_of_memory", "out_of_memory", "file_too_large"], done.stderr


@as_root
def test_handing_over_and_taking_back_touches_only_a_job_s_own(tmp_path: Path) -> None:
    """An input that has a second name in the job's folder stays its owner's; no link is followed."""
    run, uid = tmp_path / "job" / "run", uid_of("job_a", 1_900_000_000)
    (run / "work").mkdir(parents=True)
    for path in (tmp_path / "input", run / "work" / "made"):
        path.write_text("x")
    (run / "work" / "linked").hardlink_to(tmp_path / "input")
    (run / "work" / "outside").symlink_to(tmp_path / "input")
    os.mkfifo(run / "work" / "pipe")
    hand_over(run, uid)
    assert {path.stat().st_uid for path in (run, run / "work", run / "work" / "made")} == {uid}
    assert (tmp_path / "input").stat().st_uid == 0
    take_back(run)
    assert sorted(path.name for path in run.rglob("*")) == ["linked", "made", "work"]
    assert {path.stat().st_uid for path in (run, *run.rglob("*"))} == {0}
    shutil.rmtree(run)
    run.symlink_to(tmp_path)
    take_back(run)
    assert (tmp_path / "input").exists()


def test_jobs_have_different_uids() -> None:
    uids = {uid_of(f"job_{number:024x}", 1_900_000_000) for number in range(1000)}
    assert len(uids) == 1000
    assert 1_900_000_000 <= min(uids) <= max(uids) < 2_147_352_576  # from there on others begin: systemd's uids-gids
