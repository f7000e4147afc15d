"""Who sent a request."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key may do: look, change things, read the tenant's audit log."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """One tenant's request. Every object belongs to a tenant; another's is not there (404)."""

    tenant: str
    key_id: str | None  # None where the service asks for no key
    scopes: frozenset[Scope]


LOCAL = Caller("local", None, frozenset(Scope))  # everyone, in open mode
