"""A TCP balancer: each connection goes to the next process that may have one."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count


class Balancer:
    """A context in which it listens on ``port``. Args: ports: of the processes, on this machine."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = list(ports)
        self._turn = count()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Balancer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @contextmanager
    def without(self, port: int) -> Iterator[None]:
        """A context in which a process gets no new connection; it begins a second after the last one."""
        self._ports = [other for other in self._ports if other != port]
        time.sleep(1)
        yield
        self._ports = [*self._ports, port]

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                ports = self._ports
                server = socket.create_connection(("127.0.0.1", ports[next(self._turn) % len(ports)]))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=_pipe, args=(source, target), daemon=True).start()


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
