"""Reading ahead and writing behind: in order, bounded, and no error is lost."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import pytest

from known_core.streams import Behind, ahead


def test_results_come_in_the_order_of_the_calls() -> None:
    def slow_first(index: int) -> int:
        time.sleep(0.05 if index == 0 else 0)
        return index

    with ThreadPoolExecutor(4) as pool:
        assert list(ahead(pool, (partial(slow_first, index) for index in range(20)), 3)) == list(range(20))
        assert list(ahead(pool, [], 3)) == []


def test_no_more_calls_are_under_way_than_the_depth_says() -> None:
    submitted = 0

    def calls() -> Iterator[Callable[[], int]]:
        nonlocal submitted
        for index in range(20):
            submitted += 1
            yield partial(int, index)

    with ThreadPoolExecutor(1) as pool:
        for result in ahead(pool, calls(), 3):
            assert submitted <= result + 4


def test_an_error_of_a_call_comes_in_its_place() -> None:
    def failing(index: int) -> int:
        if index == 2:
            raise OSError("the disk is gone")
        return index

    found = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012
        for result in ahead(pool, (partial(failing, index) for index in range(9)), 3):
            found.append(result)
    assert found == [0, 1]


def test_who_stops_early_waits_for_nothing_that_has_not_begun() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, (partial(begun.append, index) for index in range(9)), 8)
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert len(begun) < 9


def test_writes_happen_in_order_and_all_of_them() -> None:
    written: list[int] = []
    with Behind(2) as behind:
        for index in range(20):
            behind(partial(written.append, index))
    assert written == list(range(20))


def test_the_writer_holds_up_who_is_too_far_ahead() -> None:
    gate, written = Event(), []

    def blocked(index: int) -> None:
        assert gate.wait(30)
        written.append(index)

    with ThreadPoolExecutor(1) as pool, Behind(2) as behind:
        behind(partial(blocked, 0))
        behind(partial(blocked, 1))
        third = pool.submit(behind, partial(blocked, 2))
        time.sleep(0.1)
        assert not third.done()
        gate.set()
        third.result(30)
    assert written == [0, 1, 2]


def fail() -> None:
    raise OSError("no space")


def test_an_error_of_a_write_ends_the_block() -> None:
    with pytest.raises(OSError, match="no space"), Behind(2) as behind:
        behind(fail)


def test_an_error_of_a_write_ends_a_later_call() -> None:
    reached = 0
    with pytest.raises(OSError, match="no space"), Behind(1) as behind:  # noqa: PT012
        for reached in range(100):  # noqa: B007
            behind(fail)
    assert reached == 1


def test_an_error_in_the_block_comes_first() -> None:
    with pytest.raises(ValueError, match="mine"), Behind(2) as behind:  # noqa: PT012
        behind(fail)
        raise ValueError("mine")
