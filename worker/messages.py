"""What a trainer tells its supervisor: one JSON object a line, on a pipe of its own.

    {"type": "result", "selected": ..., "conclusion": ...}      the job is done; the artifacts are in place
    {"type": "error", "code": ..., "message": ..., ...}         the job has failed, and why
    {"type": "fan_out", "shards": ...}                          other workers may help with the nowcast that begins
    anything else                                               an event (known_core.events)

A trainer that ends without result or error has died: the job did not fail, its process did.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from known_core.errors import KnownError

TERMINAL = ("result", "error")


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
