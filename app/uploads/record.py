"""An upload as the disk knows it."""

import secrets
from dataclasses import dataclass

from known_core.schema import Step

STEPS: tuple[Step, ...] = ()  # of incoming.json and upload.json since their first version; see known_core.schema


@dataclass(frozen=True)
class Upload:
    """One upload.

    Args:
        length: bytes of the whole file; None while a body of unknown length arrives.
        sha256: hex; of the bytes where it is complete, else what the client says it will be, or None.
        metadata: the client's Upload-Metadata header, given back as it came.
        offset: bytes that are here.
        expires_at: seconds since the epoch, when an upload that is not complete may be removed; else None.
    """

    id: str
    filename: str
    length: int | None
    sha256: str | None
    metadata: str = ""
    offset: int = 0
    complete: bool = False
    expires_at: float | None = None


def new_upload_id() -> str:
    return f"upl_{secrets.token_hex(12)}"
