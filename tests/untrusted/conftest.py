"""What the tests of strangers' input share."""

from collections.abc import Iterator

import httpx
import pytest

HTTP = httpx.Client(timeout=120)  # of all tests: making one costs more than most cases


@pytest.fixture(scope="session", autouse=True)
def _closed() -> Iterator[None]:
    yield
    HTTP.close()
