"""Who sent a request."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """One tenant's request. Every object belongs to a tenant; another's is not there (404)."""

    tenant: str


LOCAL = Caller("local")  # everyone, while the service asks for no key
