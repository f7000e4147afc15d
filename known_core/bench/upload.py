"""How quick an upload is, beside a bare ASGI handler that writes the body to a file; and the API's memory meanwhile.

Both are uvicorn processes, started alike, on the same disk. The client is this process: it sends random bytes from
memory over a plain socket, so that it costs as little as it can. Rounds alternate, in both orders.
"""

import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from known_core.errors import KnownError
from known_core.processes import die_with_parent
from known_core.stack import Stack, _free_port

_PIECE = secrets.token_bytes(1 << 20)
_BARE = ("bare", "bare, fsync")


def run_upload(size: int, rounds: int, folder: Path | None, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Time uploads.

    Args:
        size: bytes of each.
        rounds: of each kind.
        folder: where the servers write; None: the folder for temporary files.

    Returns:
        Seconds of every round by kind; ``ratios``, the bare handler's seconds over the API's, paired by round, with
        their median and range; ``memory``: the API's resident memory before and its peak, bytes.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        limits = {"KNOWN_MAX_UPLOAD_BYTES": str(max(size, 1 << 20))}
        with (
            Stack(Path(place) / "stack", 0, limits) as stack,
            _bare(Path(place), "0") as bare,
            _bare(Path(place), "1") as bare_fsync,
        ):
            targets = {"api": stack.url, "bare": bare, "bare, fsync": bare_fsync}
            seconds: dict[str, list[float]] = {name: [] for name in targets}
            _tus(stack.url, 1 << 20)  # what is imported or made once
            pid = stack.pids()["api"]
            before = _memory(pid, "VmRSS")
            with _watching(pid) as peak:
                for turn in range(rounds):
                    for name in list(targets) if turn % 2 == 0 else reversed(list(targets)):
                        os.sync()
                        taken = (_tus if name == "api" else _post)(targets[name], size)
                        seconds[name].append(taken)
                        on_progress(f"round {turn + 1}, {name}: {size / taken / 1e6:.0f} MB/s")
                        (Path(place) / "body").unlink(missing_ok=True)
            memory = {"before": before, "peak": peak[0]}
    ratios = {name: [other / ours for other, ours in zip(seconds[name], seconds["api"], strict=True)] for name in _BARE}
    return {
        "size": size,
        "seconds": seconds,
        "ratios": {
            name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for name, values in ratios.items()
        },
        "memory": memory,
    }


@contextmanager
def _bare(place: Path, fsync: str) -> Iterator[str]:
    """The bare handler, run as the stack runs the API."""
    port = _free_port()
    options = "--host 127.0.0.1 --no-access-log --lifespan off known_core.bench.bare_asgi:app"
    command = [sys.executable, "-P", "-m", "uvicorn", *options.split(), "--port", str(port)]
    environment = {**os.environ, "BENCH_FILE": str(place / "body"), "BENCH_FSYNC": fsync}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        _post(url, 1 << 20)
        yield url
    finally:
        process.terminate()
        process.wait()


def _tus(url: str, size: int) -> float:
    """Seconds of a resumable upload from its creation to its last answer; it is deleted afterwards."""
    headers = {"Tus-Resumable": "1.0.0"}
    begun = time.perf_counter()
    created = httpx.post(f"{url}/v1/uploads", headers={**headers, "Upload-Length": str(size)})
    created.raise_for_status()
    path = created.headers["location"]
    offset = "Upload-Offset: 0\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\n"
    _send(url, f"PATCH {path} HTTP/1.1\r\n{offset}", size)
    taken = time.perf_counter() - begun
    httpx.delete(url + path, headers=headers, timeout=60).raise_for_status()
    return taken


def _post(url: str, size: int) -> float:
    begun = time.perf_counter()
    _send(url, "POST / HTTP/1.1\r\n", size)
    return time.perf_counter() - begun


def _send(url: str, head: str, size: int) -> None:
    """One request over a connection of its own."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 80), timeout=600) as connection:
        lines = f"{head}Host: {place.hostname}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        connection.sendall(lines.encode())
        for _ in range(size // len(_PIECE)):
            connection.sendall(_PIECE)
        connection.sendall(_PIECE[: size % len(_PIECE)])
        answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 204"):
        raise KnownError("server_error", f"the server answered {answer[:200]!r}", "See its log.")


def _memory(pid: int, what: str) -> int:
    """Bytes, of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{what}:")))


@contextmanager
def _watching(pid: int) -> Iterator[list[int]]:
    """The largest resident memory seen while the block runs, every 20 ms."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _memory(pid, "VmRSS"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def upload_summary(found: dict[str, Any]) -> str:
    """A few lines for people."""
    size, memory = found["size"], found["memory"]
    lines = [f"{name}: {size / statistics.median(taken) / 1e6:.0f} MB/s" for name, taken in found["seconds"].items()]
    lines += [
        f"of the {name} handler: {ratio['median']:.0%} [{ratio['least']:.0%}, {ratio['most']:.0%}]"
        for name, ratio in found["ratios"].items()
    ]
    lines.append(f"memory of the API: {memory['before'] / 1e6:.0f} MB before, {memory['peak'] / 1e6:.0f} MB at most")
    return "\n".join(lines)
