"""Reading ahead of the work and writing behind it, so that disk and processor are busy at the same time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


def ahead(pool: Executor, calls: Iterable[Callable[[], T]], depth: int) -> Iterator[T]:
    """The results of ``calls`` in their order, with ``depth`` of them under way while the caller looks at one."""
    under_way: deque[Future[T]] = deque()
    try:
        for call in calls:
            under_way.append(pool.submit(call))
            if len(under_way) > depth:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


class Behind:
    """Runs calls one after the other in a thread of its own, at most ``depth`` behind; leaving the block waits for all.

    An error of a call is raised from the next one, or from the end of the block.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._under_way: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Behind":
        return self

    def __call__(self, call: Callable[[], None]) -> None:
        self._under_way.append(self._pool.submit(call))
        while len(self._under_way) > self._depth:
            self._under_way.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for future in self._under_way:
                future.cancel()
        self._pool.shutdown()
        while kind is None and self._under_way:
            self._under_way.popleft().result()
