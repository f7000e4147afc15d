"""What each call does, once for the blocking and the asynchronous client (:mod:`known_core.client.steps`)."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from known_core.client import errors
from known_core.client.records import (
    Artifact,
    Event,
    EventPage,
    JobError,
    JobFields,
)
from known_core.client.requests import Wanted, build_request, hub_reference
from known_core.client.steps import Give, Send, Sleep, Steps, Work
from known_core.client.transfer import Patience, Progress, download_file, upload_path
from known_core.errors import KnownError
from known_core.files import write_json
from known_core.manifest import verify_manifest

POLL_S = 20  # one long poll
_LOOK_S = 0.5  # between two looks at something that cannot be waited for
_TRIES = 5  # of a request that is safe to send again
_IN_FLIGHT_S = 1.0  # between two looks for the answer to the same request
_LOG_LINES = 200  # of a log that is followed, fetched at once
_MOST_LOG_LINES = 100_000


def ask(step: Send, patience_s: float, *, again: bool = False) -> Steps[httpx.Response]:
    """A request and its answer. Where there were too many, the next is sent when the service said.

    Args:
        patience_s: waits for a rate limit, or for the answer to the same request sent before, are no longer than this.
        again: the request may be sent several times, as it changes nothing or has an Idempotency-Key: where its
            connection breaks or the service answers that it may pass, it is.
    """
    tries = 0
    until = time.monotonic() + patience_s
    while True:
        try:
            answer: httpx.Response = yield step
        except errors.RateLimited as error:
            wait_s = max(error.retry_after_s or 1.0, 0.1)
            if error.code != "rate_limited" or time.monotonic() + wait_s > until:
                raise
            yield Sleep(wait_s)
        except errors.IdempotencyKeyInFlight:
            if not again or time.monotonic() + _IN_FLIGHT_S > until:
                raise
            yield Sleep(_IN_FLIGHT_S)
        except KnownError as error:
            tries += 1
            refused = isinstance(error.__cause__, httpx.ConnectError)  # nobody is there: said at once
            if not again or refused or tries >= _TRIES or not error.retryable:
                raise
            yield Sleep(min(0.2 * 2**tries, 3.0))
        else:
            return answer


def fetch(path: str, patience_s: float, params: Mapping[str, Any] | None = None) -> Steps[dict[str, Any]]:
    """The JSON at an address."""
    given = {name: value for name, value in (params or {}).items() if value is not None}
    answer = yield from ask(Send("GET", path, params=given), patience_s)
    found: dict[str, Any] = answer.json()
    return found


def post(
    path: str, patience_s: float, body: Any = None, headers: dict[str, str] | None = None
) -> Steps[dict[str, Any]]:
    answer = yield from ask(Send("POST", path, json=body, headers=headers or {}), patience_s)
    made: dict[str, Any] = answer.json()
    return made


def delete(path: str, patience_s: float) -> Steps[None]:
    yield from ask(Send("DELETE", path), patience_s)


def token_header(token: str | None) -> dict[str, str]:
    return {"X-Hub-Token": token} if token else {}


def start(
    server: str,
    patience_s: float,
    wanted: Wanted,
    on_bytes: Callable[[Path, int, int], None],
    *,
    token: str | None,
    idempotency_key: str | None,
    dry_run: bool,
) -> Steps[dict[str, Any]]:
    """Upload what has to be, and start the job, or say what it would be."""

    def upload(path: Path) -> Steps[str]:
        return upload_path(server, path, lambda done, total: on_bytes(path, done, total), Patience(patience_s))

    request = yield from build_request(upload, wanted)
    headers = {"Content-Type": "application/json", **token_header(token)}
    if not dry_run:
        headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
    body = json.dumps(request).encode()  # with NaN, which httpx would refuse: the server's answer names the field
    params = {"dry_run": "true"} if dry_run else {}
    answer = yield from ask(
        Send("POST", "/v1/enhance", headers=headers, content=body, params=params), patience_s, again=True
    )
    made: dict[str, Any] = answer.json()
    return made


def republish_request(push: str | Mapping[str, Any] | None, candidate: str | None) -> dict[str, Any]:
    return {"hub": hub_reference(push) if isinstance(push, str) else push, "candidate": candidate}


def pages(
    path: str, patience_s: float, params: Mapping[str, Any], limit: int | None, page_size: int = 100
) -> Steps[None]:
    """Gives the items of every page, newest first, at most ``limit``."""
    after, left = None, limit
    while left is None or left > 0:
        asked = page_size if left is None else min(page_size, left)
        page = yield from fetch(path, patience_s, {**params, "limit": asked, "after": after})
        for item in page["data"]:
            yield Give(item)
        if left is not None:
            left -= len(page["data"])
        after = page["last_id"]
        if not page["has_more"] or after is None:
            return


def events(
    job_id: str, patience_s: float, *, follow: bool = True, until: float | None = None, timeout_s: float = 0.0
) -> Steps[None]:
    """Gives the job's events from its first on, as they happen, until it has ended.

    A server that goes away for a while (a deploy) ends nothing: what was missed follows.

    Args:
        follow: go on until the job has ended, instead of giving what has happened so far.
        until: ``time.monotonic()`` after which ``wait_timeout`` is raised; None: never. ``timeout_s`` is what is said.
    """
    after, patience = "0", Patience(patience_s)
    while True:
        left_s = POLL_S if until is None else until - time.monotonic()
        if left_s <= 0:
            raise errors.WaitTimeout(job_id, timeout_s)
        wait_s = max(1, min(POLL_S, round(left_s))) if follow else 0
        try:
            page = EventPage.model_validate(
                (yield from fetch(f"/v1/jobs/{job_id}/events", patience_s, {"after": after, "wait": wait_s}))
            )
        except KnownError as error:
            yield from patience.bear(error)
            continue
        patience.renew()
        for event in page.data:
            yield Give(event)
        after = page.last_id or after
        if page.ended or not (follow or page.data):
            return


def wait(
    job_id: str, patience_s: float, timeout_s: float | None, check: bool, on_event: Callable[[Event], None]
) -> Steps[dict[str, Any]]:
    """Follow a job to its end; returns it.

    Raises:
        KnownError: ``wait_timeout``; with ``check``, JobFailed where the job did not succeed.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    following = events(job_id, patience_s, until=until, timeout_s=timeout_s or 0.0)
    outcome: Any = None
    error: KnownError | None = None
    while True:  # what it gives is taken here; every other step is passed on
        try:
            step = following.send(outcome) if error is None else following.throw(error)
        except StopIteration:
            break
        outcome = error = None
        if isinstance(step, Give):
            on_event(step.item)
            continue
        try:
            outcome = yield step
        except KnownError as raised:
            error = raised
    raw = yield from fetch(f"/v1/jobs/{job_id}", patience_s)
    if check:
        check_succeeded(JobFields.model_validate(raw))
    return raw


def check_succeeded(job: JobFields) -> None:
    """Raises: JobFailed, with the code that the job failed with, where it failed or was canceled."""
    if job.status not in ("failed", "canceled"):
        return
    said = job.error or JobError(
        code="job_canceled", message=f"{job.id} was canceled", hint="Start it again if it was a mistake."
    )
    kind = errors.class_of(said.code)
    failing = kind if issubclass(kind, errors.JobFailed) else errors.JobFailed
    failed = failing(said.code, said.message, said.hint, retryable=said.retryable)
    failed.job = job
    raise failed


def republished(job_id: str, patience_s: float) -> Steps[dict[str, Any]]:
    """The job, once its result is no longer on its way to the Hub."""
    while True:
        job = yield from fetch(f"/v1/jobs/{job_id}", patience_s)
        if not job["republishing"]:
            return job
        yield Sleep(_LOOK_S)


def logs(job_id: str, patience_s: float, tail: int) -> Steps[str]:
    answer = yield from ask(Send("GET", f"/v1/jobs/{job_id}/logs", params={"tail": tail}), patience_s)
    text: str = answer.text
    return text


def follow_logs(job_id: str, patience_s: float, tail: int) -> Steps[None]:
    """Gives the log's last lines, and then what is added, asking once a second until the job has ended.

    A server that goes away for a while (a deploy) ends nothing: what was missed follows.
    """
    seen: list[str] | None = None
    patience = Patience(patience_s)
    while True:
        try:
            ended = JobFields.model_validate((yield from fetch(f"/v1/jobs/{job_id}", patience_s))).ended
            found, new = yield from _more_of_log(job_id, patience_s, seen, tail, ended=ended)
        except KnownError as error:
            yield from patience.bear(error)
            continue
        patience.renew()
        for line in new:
            yield Give(line)
        seen = found[-_LOG_LINES:]
        if ended:
            return
        yield Sleep(1.0)


def _more_of_log(
    job_id: str, patience_s: float, seen: list[str] | None, tail: int, *, ended: bool
) -> Steps[tuple[list[str], list[str]]]:
    """The log's newest lines, and those of them that follow what was seen."""
    lines = tail if seen is None else 2 * _LOG_LINES
    while True:
        found = (yield from logs(job_id, patience_s, lines)).splitlines(keepends=True)
        if not ended and found and not found[-1].endswith("\n"):
            found.pop()  # a line that is still being printed
        new = _after(seen, found)
        if new is not None or lines >= _MOST_LOG_LINES:
            return found, found if new is None else new
        lines = min(10 * lines, _MOST_LOG_LINES)  # more was printed than was fetched: reach further back


def _after(seen: list[str] | None, found: list[str]) -> list[str] | None:
    """What follows the lines that were seen; None where these are not in what was found."""
    if not seen:
        return found
    for end in range(len(found), len(seen) - 1, -1):
        if found[end - len(seen) : end] == seen:
            return found[end:]
    return None


def download(job_id: str, out: Path, only: str | None, on_bytes: Progress, patience_s: float) -> Steps[int]:
    """Fetch a job's files into a folder and verify every sha256. What was interrupted goes on where it was."""
    manifest = yield from fetch(f"/v1/jobs/{job_id}/manifest", patience_s)
    wanted = [
        entry
        for entry in manifest["files"]
        if only is None or "/" not in entry["path"] or entry["path"].startswith(f"{only}/")
    ]
    total, before = sum(entry["bytes"] for entry in wanted), 0
    for entry in wanted:

        def on_file_bytes(done: int, before: int = before) -> None:
            on_bytes(before + done, total)

        yield from download_file(
            f"/v1/jobs/{job_id}/artifacts/{quote(entry['path'])}",
            out / entry["path"],
            entry["bytes"],
            entry["sha256"],
            on_file_bytes,
            Patience(patience_s),
        )
        before += entry["bytes"]
    write_json(out / "manifest.json", manifest)
    verified: int = yield Work(lambda: verify_manifest(out, partial=only is not None))
    return verified


def files(job_id: str, patience_s: float) -> Steps[list[Artifact]]:
    listed = yield from fetch(f"/v1/jobs/{job_id}/artifacts", patience_s)
    return [Artifact.model_validate(entry) for entry in listed["data"]]
