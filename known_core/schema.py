"""Versions of what is kept: a record says its own, readers bring older ones forward and refuse newer ones.

Nothing that was written is written again: while processes of two releases run side by side, each reads what the other
wrote as long as its version stays. A change that an older reader would take wrongly makes a new version, and a step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from known_core.errors import KnownError

SCHEMA = "schema"  # the field that says it
Step = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class RecordTooNew(KnownError):
    def __init__(self, what: str, version: int, known: int) -> None:
        super().__init__(
            "record_too_new",
            f"the {what} has the schema version {version}, this process knows versions up to {known}",
            "A newer release wrote it: upgrade this one. While a rolling upgrade runs, try again.",
            retryable=True,
        )


def newest(steps: Sequence[Step]) -> int:
    """The version that is written."""
    return len(steps) + 1


def forward(record: Mapping[str, Any], steps: Sequence[Step], what: str) -> Mapping[str, Any]:
    """A record as the newest version has it.

    Args:
        record: its field ``schema`` is its version; 1 where it says none.
        steps: the first takes version 1 to 2, and so on.
        what: for the error.

    Raises:
        RecordTooNew
    """
    version = int(record.get(SCHEMA, 1))
    if version > newest(steps):
        raise RecordTooNew(what, version, newest(steps))
    for step in steps[version - 1 :]:
        record = step(record)
    return record
