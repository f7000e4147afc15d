"""A TCP proxy that fails as networks do."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

Mode = Literal["pass", "cut", "blackhole"]
_PIECE = 1 << 16


class Proxy:
    """Stands before a server on 127.0.0.1, in a context.

    ``mode`` may be set at any time: ``pass`` forwards, ``cut`` resets what is connected and all that connects,
    ``blackhole`` keeps connections and forwards nothing: what was sent arrives when it heals.

    Args:
        port: of the server.
        tap: sees what clients send before the server does; False resets the connection instead of forwarding it.
    """

    def __init__(self, port: int, tap: Callable[[bytes], bool] = lambda data: True) -> None:
        self._server = ("127.0.0.1", port)
        self._tap = tap
        self._mode: Mode = "pass"
        self.delay_s = 0.0  # before each piece
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.mode = "cut"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "cut":
            for pair in self._pairs:
                _reset(*pair)
            self._pairs.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                with suppress(NameError, OSError):
                    client.close()
                continue
            if self._mode == "cut":
                _reset(client, server)
                continue
            self._pairs.append((client, server))
            for source, target, tap in ((client, server, self._tap), (server, client, None)):
                threading.Thread(target=self._pump, args=(source, target, tap), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, tap: Callable[[bytes], bool] | None) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                time.sleep(self.delay_s)
                while self._mode == "blackhole":
                    time.sleep(0.02)
                if tap is not None and not tap(data):
                    break
                target.sendall(data)
        _reset(source, target)


def _reset(*connections: socket.socket) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
