"""In the trainer's place: tries what a stranger's code would try, and what an honest trainer has to be able to do.

``python -m tests.worker.probe JOB_FOLDER EVENTS_FD``, started as the trainer is; what to try it on stands in spec.json,
what came of it in run/results.json.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.isolation import confine


class Attempts:
    """What a stranger tries. Each returns what it got; an OSError, or nothing, is a failure."""

    def __init__(self, targets: dict[str, Any], events: int) -> None:
        self._targets, self._events = targets, events
        self._parent = os.getppid()

    def tcp_to_the_store(self) -> Any:
        return socket.create_connection(("127.0.0.1", self._targets["store_port"]), 5)

    def tcp_to_the_api(self) -> Any:
        return socket.create_connection(("127.0.0.1", self._targets["api_port"]), 5)

    def udp(self) -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            return sender.sendto(b"x", ("127.0.0.1", self._targets["udp_port"]))

    def socket_of_a_path(self) -> Any:
        with socket.socket(socket.AF_UNIX) as sender:
            sender.connect(self._targets["unix"])
            return "connected"

    def abstract_socket(self) -> Any:
        with socket.socket(socket.AF_UNIX) as sender:
            sender.connect("\0" + self._targets["abstract"])
            return "connected"

    def environment(self) -> Any:
        return [name for name, value in os.environ.items() if self._targets["canary"] in value]

    def environment_of_the_parent(self) -> Any:
        return self._targets["canary"].encode() in Path(f"/proc/{self._parent}/environ").read_bytes()

    def memory_of_the_parent(self) -> Any:
        return open(f"/proc/{self._parent}/mem", "rb")  # noqa: PTH123

    def environment_of_the_store(self) -> Any:
        return Path(f"/proc/{self._targets['store_pid']}/environ").read_bytes()

    def secret_key(self) -> Any:
        return Path(self._targets["secret_key"]).read_text()

    def home_of_the_user(self) -> Any:
        return Path(self._targets["home"]).read_text()

    def beside_the_source(self) -> Any:
        return Path(self._targets["beside_the_source"]).read_text()

    def names_of_the_neighbours(self) -> Any:
        return os.listdir(self._targets["jobs"])  # noqa: PTH208

    def file_of_a_neighbour(self) -> Any:
        return Path(self._targets["neighbour"]).read_text()

    def upload_of_a_neighbour(self) -> Any:
        return Path(self._targets["other_upload"]).read_text()

    def write_to_an_input(self) -> Any:
        return Path(self._targets["upload"]).open("r+b").write(b"changed")

    def write_to_the_spec(self) -> Any:
        return Path("../spec.json").resolve().open("a").write(" ")

    def put_another_file_in_the_place_of_the_log(self) -> Any:
        return Path("../log.txt").resolve().rename(Path("../log.old").resolve())

    def write_outside(self) -> Any:
        return (Path(self._targets["outside"]) / "written").write_text("x")

    def temporary_file_of_another(self) -> Any:
        return (Path(self._targets["outside"]) / "theirs").read_text()

    def names_in_shared_memory(self) -> Any:
        return [name for name in os.listdir("/dev/shm") if name == self._targets["shared"]]  # noqa: PTH208

    def signal_the_supervisor(self) -> Any:
        os.kill(self._parent, 0)
        return "sent"

    def trace_the_supervisor(self) -> Any:
        seize, detach = 0x4206, 17
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(seize, self._parent, None, None) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        return libc.ptrace(detach, self._parent, None, None) or "traced"

    def become_root(self) -> Any:
        os.setuid(0)
        return "root"

    def mount(self) -> Any:
        libc = ctypes.CDLL(None, use_errno=True)
        Path("mounted").mkdir(exist_ok=True)
        if libc.mount(b"none", b"mounted", b"tmpfs", 0, None) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        return libc.umount2(b"mounted", 2) or "mounted"

    def leave_the_group(self) -> Any:
        return _in_a_child(os.setsid)

    def plant_a_link(self) -> Any:
        Path("planted").symlink_to(self._targets["secret_key"])
        return "linked"

    def plant_a_hard_link(self) -> Any:
        Path("hard").hardlink_to(self._targets["upload"])
        return "linked"

    def file_above_the_limit(self) -> Any:
        with open("large", "wb") as stream:  # noqa: PTH123
            return stream.truncate(self._targets["file_bytes"] + 1)

    def fork_bomb(self) -> Any:
        children: list[int] = []
        try:
            for _ in range(self._targets["processes"] + 1):
                child = os.fork()
                if child == 0:
                    signal.pause()
                    os._exit(0)
                children.append(child)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return len(children)

    def inherited_descriptors(self) -> Any:
        found = []
        for descriptor in set(range(3, 1024)) - {self._events}:
            try:
                found.append((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115
            except OSError:
                continue
        return [name for _, name in found if self._targets["canary"] in name]

    def standard_input(self) -> Any:
        return sys.stdin.read()


class Duties:
    """What has to work."""

    def __init__(self, targets: dict[str, Any]) -> None:
        self._targets = targets

    def write_read_link_and_rename(self) -> Any:
        for name in ("work/a", "artifacts"):
            Path(name).mkdir(parents=True, exist_ok=True)
        Path("work/a/x").write_text("x")
        Path("artifacts/x").hardlink_to("work/a/x")
        Path("work/a").rename("work/b")
        return Path("artifacts/x").read_text()

    def temporary_files(self) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "x").write_text("x")
            return str(Path.cwd()) in folder

    def read_an_input(self) -> Any:
        return Path(self._targets["upload"]).read_text() and Path("../spec.json").resolve().read_text()

    def threads(self) -> Any:
        done: list[int] = []
        threads = [threading.Thread(target=done.append, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(done) == 8

    def processes_with_locks(self) -> Any:
        context = multiprocessing.get_context("spawn")
        counter = context.Value("i", 0)
        child = context.Process(target=_count, args=(counter,))
        child.start()
        child.join()
        return counter.value == 1

    def torch_with_shared_memory(self) -> Any:
        import torch

        shared: Any = torch.ones(300, 300)
        shared.share_memory_()
        return float((shared @ shared).sum()) > 0

    def talk_to_one_another(self) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as server:
            child = os.fork()
            if child == 0:
                socket.create_connection(server.getsockname()).sendall(b"x")
                os._exit(0)
            with server.accept()[0] as connection:
                got = connection.recv(1)
            os.waitpid(child, 0)
            return got == b"x"

    def a_compiler(self) -> Any:
        if shutil.which("cc") is None:
            return "none here"
        Path("x.c").write_text("int main(void) { return 0; }")
        return subprocess.run(["cc", "-o", "x", "x.c"], check=True).returncode == 0


def _count(counter: Any) -> None:
    with counter.get_lock():
        counter.value += 1


def _in_a_child(act: Callable[[], Any]) -> Any:
    child = os.fork()
    if child == 0:
        try:
            act()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _leave_behind(events: int) -> int:
    """A child that nobody waits for."""
    child = os.fork()
    if child == 0:
        os.close(events)
        signal.pause()
    return child


def outcomes(tries: Any) -> dict[str, str | None]:
    """What each attempt got; None where it failed."""
    got: dict[str, str | None] = {}
    for name in [name for name in vars(type(tries)) if not name.startswith("_")]:
        try:
            result = getattr(tries, name)()
            got[name] = str(result)[:200] if result else None
        except Exception as error:
            got[name] = None
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return got


def main(folder: Path, events: int) -> int:
    isolation = confine()
    targets = json.loads((folder / "spec.json").read_text())
    results = {
        "isolation": asdict(isolation) if isolation else None,
        "uid": os.geteuid(),
        "duties": outcomes(Duties(targets)),
        "attempts": outcomes(Attempts(targets, events)),
    }
    results["left_behind"] = _leave_behind(events)
    Path("results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
