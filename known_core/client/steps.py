"""What a call does, apart from how: a generator of steps that a blocking or an asynchronous client carries out.

An operation is written once, as a generator. It yields a step, is sent what came of it or is thrown the KnownError, and
returns its result. :func:`blocking` and :func:`concurrent` are the two ways to carry one out.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import httpx

from known_core.client import errors
from known_core.errors import KnownError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Send:
    """A request; what comes of it is the answer. Args: content: the body's bytes, or what gives them piece by piece."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | Iterator[bytes] | None = None


@dataclass(frozen=True)
class Receive:
    """A download; where the server says that a bucket has the file, from there, without the API key.

    Args:
        begin: is given the byte of the file at which the body begins, once.
        take: is given each piece of the body.
    """

    path: str
    headers: dict[str, str]
    begin: Callable[[int], None]
    take: Callable[[bytes], None]


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Work:
    """Something that takes its time on this machine; what comes of it is the result."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Give:
    """Something for whoever iterates over the operation."""

    item: Any


Step = Send | Receive | Sleep | Work | Give
Steps = Generator[Step, Any, Result]


def _arguments(step: Send) -> dict[str, Any]:
    given = {"headers": step.headers, "params": step.params, "json": step.json, "content": step.content}
    return {name: value for name, value in given.items() if value not in (None, {})}


def _first_byte(answer: httpx.Response) -> int:
    """Of a file, in an answer to a request for a range of it; whatever its status: rclone's S3 server says 200."""
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else 0


def _unreachable(http: "httpx.Client | httpx.AsyncClient", error: Exception) -> KnownError:
    return errors.problem(
        "server_unreachable",
        f"no answer from {str(http.base_url).rstrip('/')}: {error}",
        "Start one with `known serve`, or name another with --server.",
        retryable=True,
    )


def blocking(http: httpx.Client, steps: Steps[Result]) -> Result:
    """Carry out an operation that gives nothing on the way."""
    iterator = iterate(http, steps)
    try:
        while True:
            next(iterator)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        iterator.close()


def iterate(http: httpx.Client, steps: Steps[Result]) -> Generator[Any, None, Result]:
    """Carry out an operation; what it gives is iterated over."""
    outcome: Any = None
    error: KnownError | None = None
    try:
        while True:
            try:
                step = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration as end:
                result: Result = end.value
                return result
            outcome = error = None
            if isinstance(step, Give):
                yield step.item
                continue
            try:
                outcome = _do(http, step)
            except KnownError as raised:
                error = raised
    finally:
        steps.close()


def _do(http: httpx.Client, step: Send | Receive | Sleep | Work) -> Any:
    if isinstance(step, Sleep):
        time.sleep(step.seconds)
        return None
    if isinstance(step, Work):
        return step.do()
    try:
        if isinstance(step, Send):
            answer = http.request(step.method, step.path, **_arguments(step))
            if answer.is_error:
                raise errors.from_answer(answer)
            return answer
        with _download(http, step) as answer:
            if answer.is_error:
                answer.read()
                raise errors.from_answer(answer)
            step.begin(_first_byte(answer))
            for piece in answer.iter_bytes():
                step.take(piece)
    except httpx.TransportError as error:
        raise _unreachable(http, error) from error


@contextmanager
def _download(http: httpx.Client, step: Receive) -> Iterator[httpx.Response]:
    with http.stream("GET", step.path, headers=step.headers) as answer:
        if not answer.has_redirect_location:
            yield answer
            return
    with closing(http.send(_elsewhere(step, answer), stream=True)) as there:
        yield there


def _elsewhere(step: Receive, answer: httpx.Response) -> httpx.Request:
    """For the bytes that the bucket has: it knows neither the key nor the server's ETag. They never change, and their
    sha256 is checked when all are here."""
    headers = {"Range": step.headers["Range"]} if "Range" in step.headers else {}
    return httpx.Request("GET", answer.url.join(answer.headers["Location"]), headers=headers,
                         extensions={"timeout": answer.request.extensions["timeout"]})  # fmt: skip


async def concurrent(http: httpx.AsyncClient, steps: Steps[Result]) -> Result:
    """Carry out an operation that gives nothing on the way, without blocking the event loop."""
    results: list[Result] = []

    def kept() -> Steps[None]:
        results.append((yield from steps))

    async for _ in aiterate(http, kept()):
        pass
    return results[0]


async def aiterate(http: httpx.AsyncClient, steps: Steps[Any]) -> AsyncIterator[Any]:
    """Carry out an operation; what it gives is iterated over."""
    outcome: Any = None
    error: KnownError | None = None
    try:
        while True:
            try:
                step = steps.send(outcome) if error is None else steps.throw(error)
            except StopIteration:
                return
            outcome = error = None
            if isinstance(step, Give):
                yield step.item
                continue
            try:
                outcome = await _ado(http, step)
            except KnownError as raised:
                error = raised
    finally:
        with suppress(ValueError):  # a thread of a canceled task is still in it
            steps.close()


async def _ado(http: httpx.AsyncClient, step: Send | Receive | Sleep | Work) -> Any:
    if isinstance(step, Sleep):
        return await anyio.sleep(step.seconds)
    if isinstance(step, Work):
        return await anyio.to_thread.run_sync(step.do, abandon_on_cancel=True)
    try:
        if isinstance(step, Send):
            arguments = _arguments(step)
            if isinstance(step.content, Iterator):
                arguments["content"] = _apieces(step.content)
            answer = await http.request(step.method, step.path, **arguments)
            if answer.is_error:
                raise errors.from_answer(answer)
            return answer
        async with _adownload(http, step) as answer:
            if answer.is_error:
                await answer.aread()
                raise errors.from_answer(answer)
            step.begin(_first_byte(answer))
            async for piece in answer.aiter_bytes():
                step.take(piece)
    except httpx.TransportError as error:
        raise _unreachable(http, error) from error


@asynccontextmanager
async def _adownload(http: httpx.AsyncClient, step: Receive) -> AsyncIterator[httpx.Response]:
    async with http.stream("GET", step.path, headers=step.headers) as answer:
        if not answer.has_redirect_location:
            yield answer
            return
    there = await http.send(_elsewhere(step, answer), stream=True)
    try:
        yield there
    finally:
        await there.aclose()


async def _apieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A file's pieces, each read in a thread."""
    while (piece := await anyio.to_thread.run_sync(next, pieces, b"")) != b"":
        yield piece
