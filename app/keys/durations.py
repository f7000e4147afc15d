"""Durations as operators write them: 12h, 90d, 1y."""

import re

from known_core.errors import KnownError

_HOUR_MS = 3_600_000
_UNITS = {"h": _HOUR_MS, "d": 24 * _HOUR_MS, "y": 365 * 24 * _HOUR_MS}


def milliseconds(flag: str, duration: str) -> int:
    """Of a flag's value. Raises: KnownError ``usage``."""
    match = re.fullmatch(r"(\d{1,5})([hdy])", duration)
    if not match or int(match[1]) == 0:
        raise KnownError("usage", f"{flag} is {duration[:80]!r}", "Give hours, days or years: 12h, 90d, 1y.")
    return int(match[1]) * _UNITS[match[2]]
