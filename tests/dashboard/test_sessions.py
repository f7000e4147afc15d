"""Logging in with a key: the cookie opens the API to our own pages, and to no other site's."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.jobs.repository import connect
from app.keys.repository import KeyRepository
from known_core.stack import Stack

HERE = {"Sec-Fetch-Site": "same-origin"}
KeyOf = Callable[..., str]


@pytest.fixture
def visitor(guarded: Stack) -> Iterator[httpx.Client]:
    """Somebody's browser, as far as cookies go."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        yield client


def log_in(visitor: httpx.Client, key: str, headers: dict[str, str] = HERE, **fields: str) -> httpx.Response:
    return visitor.post("/login", data={"key": key, **fields}, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_page_without_a_session_leads_to_the_login_and_back(visitor: httpx.Client, key_of: KeyOf) -> None:
    away = visitor.get("/?status=failed")
    assert (away.status_code, away.headers["Location"]) == (303, "/login?next=%2F%3Fstatus%3Dfailed")
    assert 'name="next" value="/?status=failed"' in visitor.get(away.headers["Location"]).text
    back = log_in(visitor, key_of("ann"), next="/?status=failed")
    assert (back.status_code, back.headers["Location"]) == (303, "/?status=failed")
    assert visitor.get("/?status=failed").status_code == 200


@pytest.mark.parametrize("outside", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example"])
def test_the_login_leads_nowhere_else(visitor: httpx.Client, key_of: KeyOf, outside: str) -> None:
    assert log_in(visitor, key_of("ann"), next=outside).headers["Location"] == "/"


def test_the_cookie_is_out_of_reach_and_holds_no_key(visitor: httpx.Client, guarded: Stack, key_of: KeyOf) -> None:
    key = key_of("ann")
    cookie = log_in(visitor, key).headers["Set-Cookie"]
    assert re.fullmatch(r"known=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict", cookie)
    assert visitor.get("/v1/jobs", headers=HERE).json()["object"] == "list"
    secret = key.split("_", 2)[2][:43]
    stored = connect(guarded.store_url)
    names = list(stored.scan_iter("known:session:*"))
    assert names
    assert cookie[6:49] not in str(names)
    assert secret not in str([stored.get(name) for name in names])
    assert all(stored.pttl(name) > 0 for name in names)
    stored.close()


def test_over_https_the_cookie_stays_there(visitor: httpx.Client, key_of: KeyOf) -> None:
    proxied = HERE | {"X-Forwarded-Proto": "https"}
    cookie = log_in(visitor, key_of("ann"), proxied).headers["Set-Cookie"]
    assert cookie.startswith("__Host-known=")
    assert "Secure" in cookie


def test_a_wrong_key_opens_nothing(visitor: httpx.Client) -> None:
    answer = log_in(visitor, "known_nonsense")
    assert answer.status_code == 401
    assert "not one of this service" in answer.text
    assert "Set-Cookie" not in answer.headers


FROM_ELSEWHERE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this machine, or a subdomain
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    {},
]


@pytest.mark.parametrize("headers", FROM_ELSEWHERE, ids=str)
def test_another_sites_page_changes_nothing(visitor: httpx.Client, key_of: KeyOf, headers: dict[str, str]) -> None:
    """SameSite keeps the cookie from most of them; here it is sent all the same, as a lax browser would."""
    assert log_in(visitor, key_of("ann")).status_code == 303
    form: dict[str, Any] = {"content": b"x", "headers": headers | {"Content-Type": "text/plain"}}
    job = f"/v1/jobs/job_{'0' * 24}"
    for method, path in (("POST", "/v1/uploads"), ("POST", f"{job}/cancel"), ("DELETE", job), ("POST", "/v1/enhance")):
        assert refusal(visitor.request(method, path, **form)) == (403, "cross_site_request"), path
    for path in ("/login", "/logout"):
        answer = visitor.post(path, data={"key": key_of("mallory")}, headers=headers)
        assert answer.status_code == 403
        assert "cross_site_request" in answer.text
    assert visitor.get("/v1/jobs", headers=HERE).status_code == 200  # still logged in, as ann


def test_another_sites_page_reads_nothing(visitor: httpx.Client, key_of: KeyOf) -> None:
    log_in(visitor, key_of("ann"))
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
        assert refusal(visitor.get("/v1/jobs", headers=headers)) == (401, "key_missing")
        page = visitor.get("/", headers=headers)
        assert page.headers["Location"] == "/login?next=%2F"
        assert "Go on" in visitor.get(page.headers["Location"], headers=headers).text


@pytest.mark.parametrize("origin", [True, False])
def test_our_own_page_is_an_ordinary_client(visitor: httpx.Client, guarded: Stack, key_of: KeyOf, origin: bool) -> None:
    """Browsers tell plain http pages by Origin alone."""
    log_in(visitor, key_of("ann"))
    headers = {"Origin": guarded.url} if origin else HERE
    answer = visitor.post("/v1/uploads", content=b"x", headers=headers | {"Content-Type": "application/octet-stream"})
    assert answer.status_code == 201
    assert visitor.delete(f"/v1/uploads/{answer.json()['id']}", headers=headers).status_code == 204


def test_a_session_has_its_keys_scopes_and_tenant(visitor: httpx.Client, key_of: KeyOf) -> None:
    log_in(visitor, key_of("ann", "read"))
    assert refusal(visitor.post("/v1/uploads", headers=HERE)) == (403, "scope_missing")
    assert "ann" in visitor.get("/").text


def test_a_revoked_key_ends_the_session_at_the_next_request(
    visitor: httpx.Client, key_of: KeyOf, keys: KeyRepository
) -> None:
    key = key_of("ann")
    log_in(visitor, key)
    assert visitor.get("/v1/jobs", headers=HERE).status_code == 200
    keys.revoke(key.split("_")[1])
    assert refusal(visitor.get("/v1/jobs", headers=HERE)) == (401, "key_revoked")
    assert visitor.get("/").headers["Location"] == "/login?next=%2F"


def test_logging_out_ends_it_for_a_copy_of_the_cookie_too(visitor: httpx.Client, key_of: KeyOf) -> None:
    log_in(visitor, key_of("ann"))
    copied = {"Cookie": f"known={visitor.cookies['known']}"} | HERE
    assert visitor.post("/logout", headers=HERE).headers["Location"] == "/login"
    assert "known" not in visitor.cookies
    assert refusal(visitor.get("/v1/jobs", headers=copied)) == (401, "session_ended")


def test_a_part_of_a_page_leads_the_whole_page_to_the_login(visitor: httpx.Client) -> None:
    answer = visitor.get("/", headers=HERE | {"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/login?next=%2F")


def test_who_logs_in_is_written_down_and_tries_are_limited(visitor: httpx.Client, key_of: KeyOf) -> None:
    """The last of this module: it uses up this address's tries."""
    log_in(visitor, key_of("auditor", "read", "admin"))
    entries = visitor.get("/v1/audit", headers=HERE).json()["data"]
    assert [(entry["path"], entry["status"]) for entry in entries] == [("/login", 303)]
    with httpx.Client(base_url=visitor.base_url) as stranger:
        answers = [log_in(stranger, "known_nonsense").status_code for _ in range(12)]
    assert answers[-1] == 429
    assert log_in(visitor, key_of("ann")).status_code == 303  # a good key is still good
