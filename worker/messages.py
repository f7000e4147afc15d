"""What a process tells its supervisor: one JSON object a line, on a pipe of its own.

    {"type": "fetched"}                                         the inputs that are on the Hub are here
    {"type": "result", "selected": ..., "conclusion": ...}      the job is done; the artifacts are in place
    {"type": "published", "hub_url": ..., "commit": ..., ...}   the result is on the Hub
    {"type": "error", "code": ..., "message": ..., ...}         the job has failed, and why
    {"type": "fan_out", "shards": ...}                          other workers may help with the nowcast that begins
    anything else                                               an event (known_core.events)

The same for the fetcher before it and the publisher after it. One that ends without the last message of its kind has
died: the job did not fail, its process did.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from known_core.errors import KnownError, ProcessDied

_logger = logging.getLogger("known.job")
TERMINAL = ("fetched", "result", "published", "error")


def send(descriptor: int, message: Mapping[str, Any]) -> None:
    """Write one message; it arrives whole because its one writer writes it whole."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def error_message(error: KnownError) -> dict[str, Any]:
    return {"type": "error", **error_fields(error)}


def error_fields(error: KnownError) -> dict[str, Any]:
    """An error as the job record keeps it."""
    return {"code": error.code, "message": error.message, "hint": error.hint, "retryable": error.retryable}


def reporting(events: int, work: Callable[[], Mapping[str, Any]]) -> int:
    """Do the work of a process and send its last message, whatever comes.

    Returns:
        The exit status: 0 when it was done, 1 for an error.
    """
    try:
        last = work()
    except KnownError as error:
        send(events, error_message(error))
        _log(error)
        return 1
    except ProcessDied as error:  # nor did the job fail here: without a last message it is started again
        _log(error)
        return 1
    except Exception as error:  # a bug: the job fails with its name, the log has the rest
        unexpected = KnownError(
            "internal_error", f"{type(error).__name__}: {error}", "This is a bug in known; the job's log has the trace."
        )
        send(events, error_message(unexpected))
        _log(error)
        return 1
    send(events, last)
    return 0


def _log(error: Exception) -> None:
    """A bug with its trace. On a full disk there is no log; what matters has been sent."""
    with suppress(OSError):
        _logger.error("%s", error, exc_info=None if isinstance(error, KnownError | ProcessDied) else error)
