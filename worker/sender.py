"""One POST to a webhook's receiver, to an address that was checked and no other.

No redirects, no proxies of the environment, no second look at the name system: httpcore does none of these by itself.
"""

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore

from app.webhooks.guard import Destination, shown

_READ_BYTES = 4096  # of the answer's body; the rest is not fetched
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Answer:
    """What came of it: an HTTP status, and what is wrong with it; ``error`` alone where nothing was answered."""

    status: int | None
    error: str | None


class Sender:
    """Sends.

    Args:
        tls: how receivers prove that they are who the URL says.
        connect_s: what one connection may take.
        total_s: what all of it may take, however slowly bytes come.
    """

    def __init__(self, tls: ssl.SSLContext, connect_s: float = 5, total_s: float = 15) -> None:
        self._tls, self._connect_s, self._total_s = tls, connect_s, total_s

    def post(self, to: Destination, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a message. Nothing that a receiver does raises."""
        network = _Pinned(to.addresses, self._connect_s, time.monotonic() + self._total_s)
        url = httpcore.URL(scheme=to.scheme, host=to.host, port=to.port, target=to.target)
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
                pool.stream("POST", url, headers=[*headers.items(), ("Host", to.authority)], content=body) as response,
            ):
                _read_some(response)
                return Answer(response.status, _wrong(response))
        except httpcore.TimeoutException:
            return Answer(None, f"no answer within {self._total_s:g} s (to connect, {self._connect_s:g} s)")
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return Answer(None, f"no answer: {error}")


def _read_some(response: httpcore.Response) -> None:
    """Enough that an honest receiver sees its answer taken."""
    count = 0
    for chunk in response.iter_stream():
        count += len(chunk)
        if count >= _READ_BYTES:
            return


def _wrong(response: httpcore.Response) -> str | None:
    if response.status // 100 == 2:
        return None
    if response.status in _REDIRECTS:
        where = next((value for name, value in response.headers if name.lower() == b"location"), b"elsewhere")
        return f"the receiver redirects to {shown(where.decode('latin-1'))[:200]}; redirects are not followed"
    return f"the receiver answered {response.status}"


class _Pinned(httpcore.NetworkBackend):
    """Connects to given addresses whatever name is asked for, and ends at a time."""

    def __init__(self, addresses: Iterable[str], connect_s: float, deadline: float) -> None:
        self._addresses, self._connect_s, self._deadline = tuple(addresses), connect_s, deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failed: Exception = httpcore.ConnectError("the name has no address")
        for address in self._addresses:
            try:
                left = min(self._connect_s, _left(self._deadline))
                return _Until(self._deadline, self._backend.connect_tcp(address, port, left))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


class _Until(httpcore.NetworkStream):
    """A stream that ends at a time, whatever arrives."""

    def __init__(self, deadline: float, stream: httpcore.NetworkStream) -> None:
        self._deadline, self._stream = deadline, stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Until(self._deadline, self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Raises: ReadTimeout when the time is up."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time is up")
    return left
