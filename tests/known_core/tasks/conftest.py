"""What the tests of whole jobs share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """accelerate collects garbage after each training: 0.7 s over all that is imported by now, unless it is frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
