"""Which addresses a webhook may lead to: those of the public internet, and what the operator allows.

A stranger chose the URL, and this server, which posts to it, may reach what the stranger cannot: loopback, the cloud's
metadata service, the neighbours (server-side request forgery). So a URL is read once and strictly; its name is resolved
once, every address is checked, and the connection goes to one of these addresses and nowhere else. Both happen when a
job is made and again at each delivery: a name may have moved.
"""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from app.jobs.settings import StoreSettings
from known_core.errors import KnownError

Resolver = Callable[[str, int], Sequence[str]]  # a name and a port to addresses; raises OSError where there are none

MAX_URL = 2048  # characters
_PORTS = {"https": 443, "http": 80}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a name that ends in one is an IPv4 address to some resolvers (WHATWG URL)
_GLOBAL_6 = IPv6Network("2000::/3")  # all that is allotted of IPv6 (IANA)
_NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address in its last 32 bits (RFC 6052)
_NOWHERE = (  # is_global of some versions of Python holds them to be so
    IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("2001::/23"), IPv6Network("2002::/16"),
)  # fmt: skip


def system_resolver(host: str, port: int) -> Sequence[str]:
    """What the machine's own resolver says. Raises: OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True)
class Destination:
    """Where a webhook goes: the parts of its URL, and the addresses that were checked."""

    scheme: str
    host: str
    port: int
    target: str  # path and query
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Guard:
    """Checks URLs.

    Args:
        allow_http: whether http is allowed beside https.
        allowed: names, addresses and networks (CIDR) that may be reached although they are not public.
        resolve: asks the name system.
    """

    def __init__(self, allow_http: bool, allowed: Sequence[str] = (), resolve: Resolver = system_resolver) -> None:
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._networks = [network for network in map(_network, allowed) if network is not None]
        self._names = {name.lower() for name in allowed if _network(name) is None}
        self._resolve = resolve

    @classmethod
    def of(cls, settings: StoreSettings) -> "Guard":
        allowed = [host.strip() for host in settings.webhook_allowed_hosts.split(",") if host.strip()]
        return cls(settings.webhook_allow_http, allowed)

    def check(self, url: str) -> Destination:
        """Read a URL and resolve its name.

        Raises:
            KnownError: ``url_refused``; its message has nothing of the URL's user or query.
        """
        parts, port = self._parts(url)
        host = parts.hostname or ""
        addresses = self._addresses(host, port)
        if host not in self._names:
            refused = [address for address in addresses if not self._may(address)]
            if refused:
                raise _refused(
                    f"{host} is at {refused[0]}, which is no public address",
                    "Give one of the public internet. For a receiver in-house, the operator sets "
                    "KNOWN_WEBHOOK_ALLOWED_HOSTS.",
                )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Destination(parts.scheme, host, port, target, tuple(addresses))

    def _parts(self, url: str) -> tuple[SplitResult, int]:
        if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
            raise _refused(
                f"it is longer than {MAX_URL:,} characters, or has others than visible ASCII",
                "Write a name of other letters in punycode (xn--...), and escape the path.",
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused("it cannot be read as a URL", "Give https://host/path.") from error
        if parts.scheme not in self._schemes:
            raise _refused(
                f"its scheme is {parts.scheme[:20]!r}",
                "Give https. For development, the operator may allow http: KNOWN_WEBHOOK_ALLOW_HTTP.",
            )
        if "@" in parts.netloc:
            raise _refused("it has a user or a password", "Leave them out: deliveries are signed.")
        if "#" in url:
            raise _refused("it has a fragment", "Leave out # and what follows.")
        if port is None:
            port = _PORTS[parts.scheme]
        if port < 1024 and port not in _PORTS.values():
            raise _refused(f"its port is {port}", "Give 443, 80, or one above 1023.")
        return parts, port

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
            try:
                return [str(ip_address(host))]
            except ValueError as error:
                raise _refused(
                    f"{host[:80]!r} is an address in an unusual notation", "Give a name, or 192.0.2.1 or [2001:db8::1]."
                ) from error
        if not _NAME.fullmatch(host):
            raise _refused(f"{host[:80]!r} is not the name of a host", "Give https://host/path.")
        try:
            return self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise _refused(f"the name {host} is not found", "Check it; it has to resolve here.") from error

    def _may(self, address: str) -> bool:
        at = ip_address(address)
        return is_public(at) or any(at in network for network in self._networks)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is of the public internet. One that has an IPv4 address in it is that one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_6:
            return False
    nowhere = address.is_multicast or address.is_reserved or any(address in network for network in _NOWHERE)
    return address.is_global and not nowhere


def shown(url: str) -> str:
    """A URL without what may be secret: user, password and query."""
    base, has_query, _ = url.partition("?")
    return re.sub(r"//[^/]*@", "//", base, count=1) + ("?…" if has_query else "")


def _network(allowed: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(allowed)
    except ValueError:
        return None


def _refused(reason: str, hint: str) -> KnownError:
    return KnownError("url_refused", f"the webhook's URL is refused: {reason}", hint, pointer="/webhook/url")
