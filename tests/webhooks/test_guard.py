"""Which URLs are refused, in every notation that some resolver or browser would read as an inner address."""

import socket
from ipaddress import ip_address

import pytest

from app.webhooks.guard import MAX_URL, Guard, is_public, shown
from known_core.errors import KnownError

NAMES = {
    "example.com": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"],
    "localhost": ["127.0.0.1", "::1"],
    "redis": ["10.1.2.3"],
    "mixed.example": ["93.184.216.34", "169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "nat64.example.com": ["64:ff9b::5db8:d822"],
    "scoped.example": ["fe80::1%2"],
}


def resolve(host: str, port: int) -> list[str]:
    if host not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    return NAMES[host]


def refusal(url: str, guard: Guard | None = None) -> str | None:
    """Why it is refused; None where it is taken."""
    try:
        (guard or Guard(False, (), resolve)).check(url)
    except KnownError as error:
        return error.message if (error.code, bool(error.hint)) == ("url_refused", True) else None
    return None


@pytest.mark.parametrize("url", [
    "https://example.com", "https://example.com/hook?x=1&y=%20", "https://EXAMPLE.com:8443/a/b", "https://8.8.8.8/",
    "https://[2606:4700:4700::1111]/x", "https://nat64.example.com/",
])  # fmt: skip
def test_receivers_on_the_public_internet_are_taken(url: str) -> None:
    assert refusal(url) is None


@pytest.mark.parametrize("host", [
    "127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "0x7f.1", "0x7f000001", "0X7F000001", "2130706433", "017700000001",
    "0177.0.0.1", "0177.0.0.01", "127.0.0.0x1", "00000177.0.0.1", "127.000.000.001", "1.0x7f",
    "0xA9FEA9FE", "0xa9fea9fe", "2852039166", "169.254.169.254", "0251.0376.0251.0376", "169.16689662", "169.254.43518",
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "0x08080808", "134744072", "010.010.010.010",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001::1]", "[2001:db8::1]",
    "[fe80::1]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]",
    "[v1.fe80::a]", "[1234", "[::1", "::1",
    "localhost", "LOCALHOST", "localhost.", "redis", "mixed.example", "metadata.google.internal", "nat64.example",
    "scoped.example", "nowhere.example",
    "127。0。0。1", "①②⑦.⓪.⓪.①", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "localhoſt", "１２７.0.0.1", "exam­ple.com", "bücher.example",
    "127.0.0.1%2f.example.com", "%31%32%37.0.0.1", "example.com%00.internal", "example..com", ".example.com", "-.com",
    "example.com.", "", "a" * 64 + ".com", ".".join(["a" * 60] * 5),
    "user@example.com", "user:pw@example.com", "example.com@127.0.0.1", "127.0.0.1@example.com", "@example.com",
    "example.com:25", "example.com:22", "example.com:0", "example.com:65536", "example.com:-1", "example.com:443:25",
    "example.com\\@127.0.0.1", "127.0.0.1\\.example.com", "example.com#@127.0.0.1", "127.0.0.1#.example.com",
    "exam\tple.com", "example.com\n", "\x00example.com", " example.com", "example.com/\r\nHost: x",
])  # fmt: skip
def test_hosts_that_are_refused(host: str) -> None:
    assert refusal(f"https://{host}/hook") is not None
    assert refusal(f"https://{host}") is not None


@pytest.mark.parametrize("url", [
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)",
    "//example.com/", "example.com/hook", "https:/example.com", "https:example.com", "https://", "https:///hook",
    "unix:/run/docker.sock", "http+unix://%2Frun%2Fdocker.sock/", "jar:https://example.com!/", "HTTPS//example.com",
    "https://example.com/" + "x" * MAX_URL, "https://example.com/#fragment", "https://example.com/ü", "",
])  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    assert refusal(url) is not None


def test_a_refusal_repeats_no_secret() -> None:
    for url in ("https://user:s3cret@example.com/", "https://localhost/?token=s3cret", "http://example.com/?s3cret"):
        assert "s3cret" not in str(refusal(url))


def test_http_is_for_development() -> None:
    assert refusal("http://example.com/", Guard(True, (), resolve)) is None
    assert refusal("http://localhost/", Guard(True, (), resolve)) is not None


@pytest.mark.parametrize(("allowed", "url", "taken"), [
    (["10.0.0.0/8"], "https://redis/", True), (["10.1.2.3"], "https://redis/", True),
    (["redis"], "https://redis/", True), (["REDIS"], "https://redis/", True),
    (["10.0.0.0/9"], "https://localhost/", False),
    (["127.0.0.0/8"], "https://localhost/", False),  # it has another address too
    (["127.0.0.0/8", "::1"], "https://localhost/", True), (["127.0.0.0/8"], "https://0x7f000001/", False),
    (["redis"], "https://10.1.2.3/", False), (["10.0.0.0/8"], "https://10.1.2.3:9000/", True),
    (["redis"], "https://xredis/", False), (["redis"], "https://redis:25/", False), ([], "https://redis/", False),
])  # fmt: skip
def test_what_the_operator_allows(allowed: list[str], url: str, taken: bool) -> None:
    assert (refusal(url, Guard(False, allowed, resolve)) is None) == taken


def test_numbers_are_read_as_the_machine_s_resolver_would() -> None:
    """What inet_aton takes for an address, the guard never hands to the name system."""
    for host in ("127.1", "0x7f000001", "2130706433", "0177.0.0.1"):
        assert socket.inet_aton(host) == b"\x7f\0\0\1"
        assert "unusual notation" in str(refusal(f"https://{host}/"))


def test_addresses_within_addresses_are_looked_into() -> None:
    assert is_public(ip_address("::ffff:8.8.8.8"))
    assert not is_public(ip_address("::ffff:10.0.0.1"))
    assert is_public(ip_address("64:ff9b::808:808"))
    assert not is_public(ip_address("64:ff9b::a00:1"))


@pytest.mark.parametrize(("url", "masked"), [
    ("https://example.com/a?token=s", "https://example.com/a?…"), ("https://example.com", "https://example.com"),
    ("https://u:p@example.com:8443/@me", "https://example.com:8443/@me"), ("//u:p@x/y", "//x/y"), ("/y?s", "/y?…"),
])  # fmt: skip
def test_what_is_shown_of_a_url(url: str, masked: str) -> None:
    assert shown(url) == masked
