"""Who may: keys, scopes, tenants, limits and the audit log, on a service that asks for keys."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest

from app.jobs.repository import connect
from app.keys.caller import Scope
from app.keys.record import new_key
from app.keys.repository import KeyRepository
from known_core.client import Client
from known_core.errors import KnownError
from known_core.stack import Stack, _free_port
from tests.conftest import SETTINGS, Inputs, ended

OPEN_ROUTES = {"/healthz", "/readyz"}
ENVIRONMENT = SETTINGS | {
    "KNOWN_ACCESS": "keys",
    "KNOWN_RATE_LIMIT": "400/minute",
    "KNOWN_KEY_FAILURE_LIMIT": "25/minute",
    "KNOWN_MAX_QUEUED_JOBS": "3",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("guarded"), port=0, environment=ENVIRONMENT) as running:
        yield running


def operator(stack: Stack, *command: str) -> subprocess.CompletedProcess[str]:
    """An operator's command on the machine of `known serve`: it finds the store by the data folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KNOWN_")}
    environment["KNOWN_DATA_DIR"] = str(stack.logs.parent)
    return subprocess.run(
        [sys.executable, "-m", "known_core", *command], env=environment, capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def key_of(guarded: Stack) -> Callable[..., str]:
    """Makes a key of a tenant with scopes."""
    repository = KeyRepository(connect(guarded.store_url))

    def make(tenant: str, *scopes: str, lasts_ms: int | None = None) -> str:
        wanted = frozenset(Scope(scope) for scope in scopes or ("read", "write"))
        key, token = new_key(tenant, "test", wanted, repository.now(), lasts_ms)
        repository.add(key)
        return token

    return make


def get(stack: Stack, path: str, token: str | None = None, method: str = "GET", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if method == "PATCH":  # of tus: without these it is refused for what it is, whatever it is for
        headers |= {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    return httpx.request(method, stack.url + path, headers=headers, timeout=60, **options)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Its status and code; an answer to HEAD has no body, and its code is not known."""
    code = "" if answer.request.method == "HEAD" else answer.json()["code"]
    return answer.status_code, code


def test_a_key_made_by_the_operator_opens_and_is_kept_by_nobody(guarded: Stack) -> None:
    made = operator(guarded, "keys", "create", "--tenant", "team-a", "--name", "ci", "--expires", "90d")
    token = made.stdout.strip()
    assert re.fullmatch(r"known_[0-9a-f]{12}_[\w-]{43}[0-9a-f]{8}", token)
    assert get(guarded, "/v1/jobs", token).status_code == 200
    secret = token.split("_", 2)[2][:43]
    for path in guarded.logs.parent.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    (key,) = [key for key in json.loads(operator(guarded, "keys", "list", "--json").stdout) if key["name"] == "ci"]
    assert (key["tenant"], key["scopes"], key["state"]) == ("team-a", ["read", "write"], "active")
    assert key["last_used_at"] is not None
    assert secret not in made.stderr + json.dumps(key)


def test_requests_without_a_good_key_are_refused(guarded: Stack, key_of: Callable[..., str]) -> None:
    missing = get(guarded, "/v1/jobs")
    assert refusal(missing) == (401, "key_missing")
    assert missing.headers["WWW-Authenticate"] == 'Bearer realm="known"'
    good, other = key_of("team-a"), key_of("team-a")
    swapped = other[:19] + good[19:]  # the id of one, the secret of the other
    for token in (swapped, good[:-1] + ("A" if good[-1] != "A" else "B"), "known_000000000000_" + "A" * 43, "x", "ä"):
        answer = httpx.get(f"{guarded.url}/v1/jobs", headers={b"Authorization": f"Bearer {token}".encode()})
        assert refusal(answer) == (401, "key_invalid"), token
    basic = httpx.get(f"{guarded.url}/v1/jobs", auth=("user", good))
    assert refusal(basic) == (401, "key_invalid")
    assert get(guarded, "/v1/jobs", good).status_code == 200
    short = key_of("team-a", lasts_ms=1)
    time.sleep(0.01)
    assert refusal(get(guarded, "/v1/jobs", short)) == (401, "key_expired")


def test_a_revoked_key_opens_nothing_after_five_seconds(guarded: Stack, key_of: Callable[..., str]) -> None:
    token = key_of("team-a")
    assert get(guarded, "/v1/jobs", token).status_code == 200
    operator(guarded, "keys", "revoke", token.split("_")[1])
    deadline = time.monotonic() + 15
    while get(guarded, "/v1/jobs", token).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert refusal(get(guarded, "/v1/jobs", token)) == (401, "key_revoked")


def test_streams_end_with_what_opened_them(guarded: Stack, key_of: Callable[..., str], inputs: Inputs) -> None:
    """A key that is revoked, one that expires, and a browser's session that logs out; another's stream goes on."""
    revoked, kept = key_of("team-b"), key_of("team-b")
    with (
        Client(guarded.url, kept) as client,
        httpx.Client(base_url=guarded.url, headers={"Origin": guarded.url}, timeout=30) as browser,
        ThreadPoolExecutor(4) as pool,
    ):
        assert browser.post("/login", data={"key": kept}).status_code == 303
        waits = inputs.request(client, f"{guarded.url}#team-b", device="cuda")  # no worker here has a GPU
        job_id = client.enhance(waits)["id"]
        expires = key_of("team-b", lasts_ms=5000)
        opened = Barrier(5)

        def follow(**who: Any) -> None:
            headers = {"Accept": "text/event-stream", **who}
            with httpx.stream("GET", f"{guarded.url}/v1/jobs/{job_id}/events", headers=headers, timeout=30) as answer:
                assert answer.status_code == 200
                opened.wait(30)
                answer.read()

        session = {"Cookie": f"known={browser.cookies['known']}"}
        over = [pool.submit(follow, **who) for who in (bearer(revoked), bearer(expires), session)]
        goes_on = pool.submit(follow, **bearer(kept))
        opened.wait(30)
        try:
            operator(guarded, "keys", "revoke", revoked.split("_")[1])
            assert browser.post("/logout").status_code == 303
            for stream in over:
                stream.result(timeout=25)
            assert not goes_on.done()
        finally:
            client.cancel(job_id)  # which ends every stream
        goes_on.result(timeout=30)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def routes(stack: Stack) -> list[tuple[str, str]]:
    described = httpx.get(f"{stack.url}/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in described.items() for method in methods]


def filled(path: str, job_id: str, upload_id: str) -> str:
    path = path.replace("{delivery_id}", job_id.replace("job_", "msg_"))
    path = path.replace("{job_id}", job_id).replace("{upload_id}", upload_id).replace("{path}", "report.json")
    path = path.replace("{name}", "before_after")
    assert "{" not in path, "say here what this route's parameter is"
    return path


def test_every_route_asks_for_a_key_and_a_scope(guarded: Stack, key_of: Callable[..., str]) -> None:
    reads, writes = key_of("scopes", "read"), key_of("scopes", "write")
    for method, path in routes(guarded):
        address = filled(path, f"job_{'0' * 24}", f"upl_{'0' * 24}")
        if path in OPEN_ROUTES:
            assert get(guarded, address, method=method).status_code == 200
            continue
        no_body = method == "HEAD"
        assert refusal(get(guarded, address, method=method)) == (401, "" if no_body else "key_missing"), path
        looks = method in ("GET", "HEAD")
        wrong = get(guarded, address, writes if looks else reads, method)
        assert refusal(wrong) == (403, "" if no_body else "scope_missing"), (method, path)
    assert refusal(get(guarded, "/v1/audit", reads)) == (403, "scope_missing")
    assert refusal(get(guarded, "/v1/webhooks/secret", reads)) == (403, "scope_missing")


@pytest.fixture(scope="module")
def belongings(guarded: Stack, key_of: Callable[..., str], inputs: Inputs) -> dict[str, Any]:
    """What the tenant alice has: a finished job and its uploads."""
    with Client(guarded.url, key_of("alice")) as alice:
        request = inputs.request(alice, f"{guarded.url}#alice")
        job = alice.enhance(request)
        assert ended(alice, job["id"])["status"] == "succeeded"
    return {"job": job["id"], "request": request, "upload": request["dataset"]["upload_id"]}


def test_what_is_anothers_is_not_there(guarded: Stack, key_of: Callable[..., str], belongings: dict[str, Any]) -> None:
    """Every route that names an object answers a stranger as if there were none, and changes nothing."""
    mallory, alice = key_of("mallory", "read", "write", "admin"), key_of("alice")
    before = get(guarded, f"/v1/jobs/{belongings['job']}", alice).json()
    named = [(method, path) for method, path in routes(guarded) if "{" in path]
    assert len(named) > 8
    for method, path in named:
        theirs = get(guarded, filled(path, belongings["job"], belongings["upload"]), mallory, method)
        nobodys = get(guarded, filled(path, f"job_{'0' * 24}", f"upl_{'0' * 24}"), mallory, method)
        assert theirs.status_code == nobodys.status_code == 404, (method, path)
        assert refusal(theirs) == refusal(nobodys)
    assert get(guarded, "/v1/jobs", mallory).json()["data"] == []
    assert refusal(get(guarded, f"/v1/jobs?after={belongings['job']}", mallory)) == (404, "job_not_found")
    used = get(guarded, "/v1/enhance", mallory, "POST", json=belongings["request"])
    unknown = json.loads(json.dumps(belongings["request"]).replace(belongings["upload"], f"upl_{'0' * 24}"))
    assert (
        refusal(used) == refusal(get(guarded, "/v1/enhance", mallory, "POST", json=unknown)) == (422, "upload_unknown")
    )
    keys = {entry["key"] for entry in get(guarded, "/v1/audit?limit=1000", mallory).json()["data"]}
    assert keys == {mallory.split("_")[1]}
    assert get(guarded, f"/v1/jobs/{belongings['job']}", alice).json() == before
    assert get(guarded, "/v1/jobs", alice).json()["data"] == [before]


def test_an_idempotency_key_is_a_tenants_own(
    guarded: Stack, key_of: Callable[..., str], belongings: dict[str, Any], inputs: Inputs
) -> None:
    made = []
    for tenant in ("carol", "dave"):
        with Client(guarded.url, key_of(tenant)) as client:
            headers = {"Authorization": f"Bearer {key_of(tenant)}", "Idempotency-Key": "the-same"}
            body = inputs.request(client, f"{guarded.url}#{tenant}")
            answer = httpx.post(f"{guarded.url}/v1/enhance", json=body, headers=headers, timeout=60)
            assert answer.status_code == 202, answer.text
            made.append(answer.json()["id"])
            client.cancel(made[-1])
    assert made[0] != made[1]


@pytest.mark.slow
def test_a_flood_of_one_tenant_keeps_no_other_waiting(
    guarded: Stack, key_of: Callable[..., str], inputs: Inputs
) -> None:
    with Client(guarded.url, key_of("flood")) as flood, Client(guarded.url, key_of("drop")) as drop:
        many = [flood.enhance(inputs.request(flood, f"{guarded.url}#flood"))["id"] for _ in range(3)]
        one = drop.enhance(inputs.request(drop, f"{guarded.url}#drop"))["id"]
        assert ended(drop, one)["status"] == "succeeded"
        waiting = [job_id for job_id in many if flood.job(job_id)["status"] == "queued"]
        assert waiting, "one worker has run all of the flood first"
        for job_id in waiting:
            flood.cancel(job_id)
        assert {ended(flood, job_id)["status"] for job_id in many} <= {"succeeded", "canceled"}


def test_a_tenant_with_too_many_waiting_jobs_is_told_to_wait(
    guarded: Stack, key_of: Callable[..., str], inputs: Inputs
) -> None:
    token = key_of("greedy")
    with Client(guarded.url, token) as client:
        body = inputs.request(client, f"{guarded.url}#greedy")
        client.cancel(client.enhance(body)["id"])
        with ThreadPoolExecutor(8) as pool:
            send = lambda _: get(guarded, "/v1/enhance", token, "POST", json=body)  # noqa: E731
            answers = list(pool.map(send, range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {202, 429}
        assert all(
            (answer.json()["code"], answer.headers["Retry-After"]) == ("quota_exceeded", "30") for answer in refused
        )
        for answer in answers:
            if answer.status_code == 202:
                client.cancel(answer.json()["id"])


def test_a_tenant_that_asks_too_often_is_told_to_wait(guarded: Stack, key_of: Callable[..., str]) -> None:
    token = key_of("hasty")
    with httpx.Client(base_url=guarded.url, headers={"Authorization": f"Bearer {token}"}) as client:
        answers = [client.get("/v1/jobs") for _ in range(430)]
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(served) + len(refused) == 430
    assert 400 <= len(served) <= 420  # the window slides meanwhile
    assert refused[0].json()["code"] == "rate_limited"
    assert 1 <= int(refused[0].headers["Retry-After"]) <= 60
    assert get(guarded, "/v1/jobs", key_of("patient")).status_code == 200


def test_who_changed_what_is_written_down(guarded: Stack, key_of: Callable[..., str]) -> None:
    token, admin = key_of("erin"), key_of("erin", "admin", "read")
    unknown = f"/v1/jobs/job_{'1' * 24}/cancel"
    answer = get(guarded, unknown + "?secret=hush", token, "POST")
    assert answer.status_code == 404
    get(guarded, "/v1/jobs", token)  # looking is not written down
    page = get(guarded, "/v1/audit", admin).json()
    (entry,) = page["data"]
    key_id = token.split("_")[1]
    assert (entry["key"], entry["method"], entry["path"], entry["status"]) == (key_id, "POST", unknown, 404)
    assert (entry["code"], entry["client"]) == ("job_not_found", "127.0.0.1")
    assert entry["request_id"] == answer.headers["X-Request-Id"]
    get(guarded, "/v1/uploads", admin, "POST")  # lacks the scope: written down for the tenant
    newest = get(guarded, "/v1/audit?limit=1", admin).json()
    assert newest["data"][0]["code"] == "scope_missing"
    assert get(guarded, f"/v1/audit?before={newest['last_id']}", admin).json()["data"] == [entry]
    strangers = [json.loads(line) for line in operator(guarded, "audit").stdout.splitlines()]
    assert "key_missing" in {line["code"] for line in strangers}
    operators = [json.loads(line) for line in operator(guarded, "audit", "--tenant", "team-a").stdout.splitlines()]
    assert {"key created", "key revoked"} <= {line.get("action") for line in operators}
    assert token not in json.dumps(strangers + operators + page["data"])


def test_the_client_takes_a_key(guarded: Stack, key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(guarded.url) as client, pytest.raises(KnownError, match="known keys create") as raised:
        list(client.jobs())
    assert raised.value.code == "key_missing"
    monkeypatch.setenv("KNOWN_API_KEY", key_of("team-a"))
    with Client(guarded.url) as client:
        assert client.job_page().data is not None


def test_open_mode_answers_no_other_machine(stack: Stack, tmp_path: Path) -> None:
    """Bound to every address, as somebody may do by mistake."""
    outside = next(iter(socket.gethostbyname_ex(socket.gethostname())[2]), "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.254", 9))  # sends nothing: asks which address would
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("this machine has only loopback")
    port = _free_port()
    environment = {**os.environ, "KNOWN_REDIS_URL": stack.store_url, "KNOWN_DATA_DIR": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "app.main:create_app",
        "--host",
        "0.0.0.0",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        api = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/v1/jobs").status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert httpx.get(f"http://{outside}:{port}/healthz").status_code == 200
        answer = httpx.get(f"http://{outside}:{port}/v1/jobs", headers={"Host": "localhost"})
        assert refusal(answer) == (403, "open_mode_is_local")
        assert outside in answer.json()["detail"]
    finally:
        api.terminate()
        api.wait()


def test_an_address_that_tries_keys_is_told_to_wait(guarded: Stack, key_of: Callable[..., str]) -> None:
    """The last of this module: it uses up this address's tries."""
    answers = [get(guarded, "/v1/jobs", f"known_{index:012x}_{'A' * 43}") for index in range(30)]
    assert refusal(answers[-1]) == (429, "rate_limited")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert get(guarded, "/v1/jobs", key_of("team-a")).status_code == 200  # a good key is still good
