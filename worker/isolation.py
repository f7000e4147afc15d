"""What a process of a job may do: its own files, and no network, secret or neighbour.

A stranger's weights and data are read in here, so a bug in a library that reads them is taken for granted. Every
mechanism is a Linux system call that the process makes on itself before it reads any of them (its man page or kernel
document is named where it is made); nothing has to be installed. What a machine does not have is reported, and
:data:`_HELD_BY` says which promise then lacks a mechanism.
"""

import errno
import fcntl
import hashlib
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from known_core.errors import KnownError
from known_core.processes import die_with_parent
from worker.linux.calls import call
from worker.linux.landlock import CHANGE, DEVICE, LINK, LIST, READ, SCOPES_FROM, UNLISTED, Landlock
from worker.linux.mounts import NODEV, NOSUID, READ_ONLY, new_root
from worker.linux.seccomp import LOCAL_FAMILIES, refuse_calls

if TYPE_CHECKING:
    from worker.settings import WorkerSettings

LOOPBACK = "loopback"  # the mechanism that lets the processes of a team talk to one another
_VARIABLE = "_CONFINEMENT"  # how a confinement travels: in the environment, which a stranger does not write
_UIDS = 1 << 24  # as many as six hexadecimal digits
_OUR_PACKAGES = ("known_core", "app", "worker")
_SYSTEM = (  # what an interpreter and its libraries read; a GPU's driver reads /sys and /proc
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/opt/rocm", "/run/opengl-driver", "/sys",
    "/proc",
    "/etc/alternatives", "/etc/fonts", "/etc/group", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/nvidia", "/etc/OpenCL", "/etc/os-release",
    "/etc/passwd", "/etc/vulkan",
)  # fmt: skip
_NETWORK_READS = ("/etc", "/run")  # names, certificates
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd")
_GPU_DEVICES = ("nvidia*", "dri/*", "kfd")  # devices whose groups are kept
_PROC = Path("/proc")
_SHM = Path("/dev/shm")  # noqa: S108 - POSIX shared memory and semaphores: multiprocessing's locks, torch's shared tensors
_HELD_BY: dict[str, tuple[frozenset[str], ...]] = {  # each promise, and the sets of mechanisms that keep it
    "files": (frozenset({"landlock"}), frozenset({"mounts", "uid"})),
    "network": (frozenset({"seccomp"}), frozenset({"netns", "mounts"})),
    "processes": (frozenset({"landlock"}), frozenset({"uid"})),
    "signals": (frozenset({"scopes"}), frozenset({"uid"})),
    "privileges": (frozenset({"unprivileged"}),),
}


@dataclass(frozen=True)
class Limits:
    """Of one process (getrlimit(2)); 0 is no limit. Bytes of one file, bytes of memory, processes and threads."""

    file_bytes: int = 0
    memory_bytes: int = 0
    processes: int = 0


@dataclass(frozen=True)
class Confinement:
    """What a process may do.

    Args:
        home: its working folder; all else is below ``writes``.
        uid: what it becomes where it starts as root; it then owns ``home``.
        reads, writes: files and folders, besides those of the interpreter.
        sandboxed: whether it has neither network nor rights; otherwise its files alone are restricted.
        required: whether it must not run where a promise lacks a mechanism.
        team: whether its processes talk to one another, over a loopback interface that nobody else has. Where the
            machine cannot give them one, they have no network, as any other.
    """

    home: str
    uid: int
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    sandboxed: bool = True
    required: bool = False
    team: bool = False
    limits: Limits = field(default_factory=Limits)

    def environment(self) -> dict[str, str]:
        return {_VARIABLE: json.dumps(asdict(self))}


@dataclass(frozen=True)
class Isolation:
    """What was done: the mechanisms in force, the promises without one, and why mechanisms are not in force."""

    mechanisms: list[str]
    lacking: list[str]
    reasons: dict[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        lacking = f"nothing protects {', '.join(self.lacking)}" if self.lacking else "all promises are kept"
        return f"isolation by {', '.join(self.mechanisms) or 'nothing'}; {lacking} ({reasons or 'all mechanisms work'})"


def import_path() -> str:
    """PYTHONPATH with which another process runs the code that this one does."""
    ours = str(Path(__file__).parents[1])
    return os.pathsep.join(dict.fromkeys([ours, *(path for path in sys.path if path)]))


def uid_of(job_id: str, first: int) -> int:
    """The uid that the processes of a job run as, where the worker is root: one of 16.7 million, by the job's id."""
    return first + int(hashlib.sha256(job_id.encode()).hexdigest(), 16) % _UIDS


def confinement(
    settings: "WorkerSettings",
    job_id: str,
    home: Path,
    reads: Iterable[Path | str] = (),
    writes: Iterable[Path] = (),
    sandboxed: bool = True,
    team: bool = False,
) -> Confinement | None:
    """The confinement of a job's process by the worker's settings; None where they say that there is none."""
    if settings.isolation == "off":
        return None
    limits = Limits(
        settings.trainer_file_bytes, settings.trainer_memory_bytes if sandboxed else 0, settings.trainer_processes
    )
    extra = [path for path in settings.trainer_reads.split(os.pathsep) if path]
    return Confinement(
        str(home),
        uid_of(job_id, settings.trainer_uids),
        tuple(map(str, (*reads, *extra))),
        (str(home), *map(str, writes)),
        sandboxed,
        settings.isolation == "required",
        team,
        limits,
    )


def hand_over(folder: Path, uid: int) -> None:
    """Give a folder and all below it to a job's uid, where this process is root.

    Files with several names are left alone: one of them may be an input's.
    """

    def give(name: str, at: int, found: os.stat_result) -> None:
        if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
            os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False)

    if os.geteuid() == 0:
        _each_below(folder, give)
        os.chown(folder, uid, uid)


def take_back(folder: Path) -> None:
    """After the end of a job's processes: what it owns goes to who owns the folder's parent, and what is neither file
    nor folder is removed, so that who reads it later is led nowhere."""
    owner = folder.parent.stat()

    def take(name: str, at: int, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=at)
        elif found.st_uid != owner.st_uid and os.geteuid() == 0:
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=at, follow_symlinks=False)

    if folder.is_dir() and not folder.is_symlink():
        if os.geteuid() == 0:
            os.chown(folder, owner.st_uid, owner.st_gid)
        _each_below(folder, take)


def _each_below(folder: Path, act: Callable[[str, int, os.stat_result], None]) -> None:
    """Call ``act`` with the name, the open parent, and the status of everything below; no link is followed."""
    for _, folders, files, at in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # a process that helps may tidy up
                act(name, at, os.stat(name, dir_fd=at, follow_symlinks=False))


def confine() -> Isolation | None:
    """Do to this process what its environment says, before anything of a stranger's is read; ends with its parent.

    Call it first thing, while there is one thread: the kernel restricts threads, not processes.

    Returns:
        What is in force now; None where the process is not to be confined.

    Raises:
        KnownError: ``isolation_incomplete`` where it is required and a promise lacks a mechanism.
    """
    parent = os.getppid()
    die_with_parent()
    given = os.environ.pop(_VARIABLE, None)
    if given is None:
        return None
    fields = json.loads(given)
    wanted = Confinement(**{**fields, "limits": Limits(**fields["limits"])})
    done = _Confining(wanted).run()
    die_with_parent()  # a change of uid forgets it (prctl(2), PR_SET_PDEATHSIG)
    if os.getppid() != parent:
        os._exit(1)
    if wanted.sandboxed and wanted.required and done.lacking:
        raise KnownError(
            "isolation_incomplete", str(done), "Run the worker on another kernel, or with KNOWN_ISOLATION=auto."
        )
    return done


def check(settings: "WorkerSettings") -> Isolation | None:
    """What this machine can do: a process that confines itself, beside the jobs, and says how it went.

    Returns:
        None where isolation is off.

    Raises:
        KnownError: ``isolation_incomplete`` where the settings require more.
    """
    jobs = settings.data / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jobs, prefix=".isolation-") as folder:
        Path(folder).chmod(0o755)
        wanted = confinement(settings, Path(folder).name, Path(folder) / "run", team=settings.team_size > 1)
        if wanted is None:
            return None
        Path(wanted.home).mkdir()
        hand_over(Path(wanted.home), wanted.uid)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "worker.isolation"],
            env={"PYTHONPATH": import_path(), **wanted.environment()},
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    if done.returncode == 0:
        return Isolation(**json.loads(done.stdout))
    lines = done.stderr.strip().splitlines()
    raise KnownError(
        "isolation_incomplete", lines[-1] if lines else f"the check ended with {done.returncode}",
        "Run the worker on another kernel, or with KNOWN_ISOLATION=auto.",
    )  # fmt: skip


class _Confining:
    """The mechanisms, in the order in which they can be applied: each takes away what those before it need."""

    def __init__(self, wanted: Confinement) -> None:
        self._wanted = wanted
        self._done: list[str] = []
        self._reasons: dict[str, str] = {}
        self._inputs = [path for path in map(Path, wanted.reads) if path.exists()]
        self._reads = [path for path in (*map(Path, _SYSTEM), *_interpreter(), *self._inputs) if path.exists()]
        self._writes = [Path(path) for path in wanted.writes]
        self._devices = [path for name in _DEVICES for path in sorted(Path("/dev").glob(name))]

    def run(self) -> Isolation:
        if self._wanted.sandboxed:
            self._try("netns", _own_network)
            self._try("mounts", self._own_mounts)
            if self._wanted.team:
                self._try(LOOPBACK, self._loopback)
            self._try("uid", self._own_uid)
            self._try("unprivileged", _check_unprivileged)
        self._try("limits", lambda: _limit(self._wanted.limits))
        self._try("dumps", _no_dumps)
        self._try("landlock", self._landlock)
        if self._wanted.sandboxed:
            self._try("seccomp", lambda: refuse_calls(families=LOCAL_FAMILIES if LOOPBACK in self._done else ()))
        promises = _HELD_BY if self._wanted.sandboxed else {"files": _HELD_BY["files"]}
        lacking = [name for name, ways in promises.items() if not any(way <= set(self._done) for way in ways)]
        return Isolation(self._done, lacking, self._reasons)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, NotImplementedError) as error:
            self._reasons[name] = str(error)
        else:
            self._done.append(name)

    def _own_mounts(self) -> None:
        """Nothing but what may be read and written is there at all."""
        view = {str(path): READ_ONLY for path in self._reads if path != _PROC}
        view |= {str(path): NOSUID for path in self._devices} | {str(path): NOSUID | NODEV for path in self._writes}
        new_root(view, Path(self._wanted.home))

    def _loopback(self) -> None:
        """netdevice(7). With the network and the mounts its own, sockets lead nowhere but to its own processes."""
        if not {"netns", "mounts"} <= set(self._done):
            raise OSError(errno.EPERM, "it needs a network and mounts of its own")
        set_flags, up_and_running = 0x8914, 0x41
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14s", b"lo", up_and_running, b""))

    def _own_uid(self) -> None:
        """setresuid(2); all capabilities go with it (capabilities(7))."""
        for path in self._inputs:
            if not path.stat().st_mode & stat.S_IROTH:
                raise OSError(errno.EACCES, f"another uid does not read {path}: its mode is closed to others")
        if "mounts" not in self._done:
            for path in (*self._reads, *self._writes):
                _require_reachable(path)
        groups = {path.stat().st_gid for name in _GPU_DEVICES for path in Path("/dev").glob(name)} - {0}
        os.setgroups(sorted(groups))
        os.setresgid(self._wanted.uid, self._wanted.uid, self._wanted.uid)
        os.setresuid(self._wanted.uid, self._wanted.uid, self._wanted.uid)

    def _landlock(self) -> None:
        landlock = Landlock(self._wanted.sandboxed, tcp=LOOPBACK in self._done)
        rules = dict.fromkeys(_source_folders(), LIST)
        rules |= dict.fromkeys(self._reads, READ) | dict.fromkeys(self._devices, DEVICE)
        if self._wanted.sandboxed:
            rules |= dict.fromkeys(self._writes, CHANGE)
        else:
            named = [os.environ[name] for name in _CERTIFICATES if name in os.environ]
            rules |= dict.fromkeys(map(Path, (*_NETWORK_READS, *named)), READ)
            rules |= dict.fromkeys(self._writes, CHANGE | LINK)  # the Hub's cache is made of links
        rules[_SHM] = UNLISTED  # where it is shared, its names are secrets
        for path, access in rules.items():
            if path.exists():
                landlock.allow(path, access)
        landlock.restrict()
        if self._wanted.sandboxed and landlock.version >= SCOPES_FROM:
            self._done.append("scopes")
        elif self._wanted.sandboxed:
            self._reasons["scopes"] = f"Landlock has version {landlock.version} here, signals from {SCOPES_FROM} on"


def _interpreter() -> list[Path]:
    """Where Python, what is installed with it, and this program's own packages lie."""
    installed = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    ours = [folder / name for folder in _source_folders() for name in _OUR_PACKAGES]
    return [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).parent, *installed, *ours]


def _source_folders() -> list[Path]:
    """Folders of the import path that hold this program's packages, and may hold anything else: a checkout.

    An import looks for names there; only the packages can be read.
    """
    return [Path(path) for path in sys.path if path and (Path(path) / _OUR_PACKAGES[-1]).is_dir()]


def _require_reachable(path: Path) -> None:
    for folder in path.resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise OSError(errno.EACCES, f"another uid does not reach {path}: {folder} is closed to others")


def _check_unprivileged() -> None:
    if os.geteuid() == 0:
        raise OSError(errno.EPERM, "the process is still root's")


def _limit(limits: Limits) -> None:
    """setrlimit(2). Memory is what a process writes to (RLIMIT_DATA): CUDA reserves more addresses than there are."""
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 8192}
    wanted |= {"RLIMIT_FSIZE": limits.file_bytes} if limits.file_bytes else {}
    wanted |= {"RLIMIT_NPROC": limits.processes} if limits.processes else {}
    wanted |= {"RLIMIT_DATA": limits.memory_bytes} if limits.memory_bytes else {}
    for name, most in wanted.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (value, value))


def _own_network() -> None:
    """unshare(2), network_namespaces(7), ipc_namespaces(7): no interface is up, no abstract socket is there."""
    clone_newnet, clone_newipc = 0x40000000, 0x08000000
    call("unshare", clone_newnet | clone_newipc)


def _no_dumps() -> None:
    """prctl(2): nobody of the same uid reads its memory; an executed file gives it no rights."""
    set_dumpable, set_no_new_privs = 4, 38
    call("prctl", set_dumpable, 0, 0, 0, 0)
    call("prctl", set_no_new_privs, 1, 0, 0, 0)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(confine() or Isolation([], [], {}))))
    except KnownError as error:
        sys.exit(str(error))
