"""Times as the API writes them."""

from datetime import UTC, datetime
from typing import overload


@overload
def rfc3339(milliseconds: int) -> str: ...
@overload
def rfc3339(milliseconds: int | None) -> str | None: ...
def rfc3339(milliseconds: int | None) -> str | None:
    """RFC 3339 in UTC, of milliseconds since the epoch."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
