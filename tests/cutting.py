"""A proxy that cuts connections: each after a random number of bytes, until it has cut often enough."""

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Cutting:
    """Args: cuts: connections still to be cut. at_most: bytes, in one direction, after which one is cut. answers: only
    what comes back is counted, so that requests arrive."""

    target: int
    cuts: int
    at_most: int
    answers: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            limit = None
            if self.cuts:
                limit = self.chance.randrange(200, self.at_most)
            for source, sink, most in ((near, far, None if self.answers else limit), (far, near, limit)):
                threading.Thread(target=self._pump, args=(source, sink, most), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(16384):
                if limit is not None and passed + len(data) > limit:
                    sink.sendall(data[: limit - passed])
                    self.cuts = max(0, self.cuts - 1)
                    break
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def cutting(port: int, cuts: int, at_most: int, *, answers: bool = False) -> Iterator[tuple[str, Cutting]]:
    """The proxy's address, and the proxy, in front of a port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        proxy = Cutting(port, cuts, at_most, answers)
        thread = threading.Thread(target=proxy.run, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", proxy
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
