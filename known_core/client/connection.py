"""Where a service is, and the key that opens it."""

import os
import re
from typing import Any

import httpx

from known_core.client import errors

DEFAULT_SERVER = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(60, read=150)  # seconds; a long poll answers sooner


def connection(server: str | None, api_key: str | None) -> dict[str, Any]:
    """What httpx's clients are made with.

    Raises:
        KnownError: ``key_invalid`` for a key that cannot be sent.
    """
    server = (server or os.environ.get("KNOWN_SERVER") or DEFAULT_SERVER).rstrip("/")
    api_key = api_key or os.environ.get("KNOWN_API_KEY")
    if api_key and not re.fullmatch(r"[!-~]+", api_key):
        raise errors.problem("key_invalid", "the API key has a space, or a sign that is not ASCII", "Copy it again.")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": server, "headers": headers, "timeout": _TIMEOUT}
