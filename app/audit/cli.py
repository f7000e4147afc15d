"""`known audit`: the operator reads any audit log from the store itself, a tenant its own from the service."""

import json
import time
from typing import Annotated

import typer

from known_core.errors import KnownError


def audit(
    tenant: Annotated[str | None, typer.Option(help="whose; default: requests that had no good key")] = None,
    since: Annotated[str | None, typer.Option(help="of the last 12h, 90d, 1y; default: all that is kept")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 100,
    server: Annotated[
        str | None, typer.Option(help="ask this service, with a key of the scope admin, instead of the store")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="KNOWN_API_KEY", help="with --server: whose tenant's log is read")
    ] = None,
) -> None:
    """Print the audit log, newest first, a JSON object a line: who changed what, and who was refused."""
    if server is not None:
        if tenant is not None or since is not None:
            raise KnownError("usage", "--tenant and --since need the store", "Leave out --server on its machine.")
        from known_core.client import Client

        with Client(server, api_key) as client:
            for made in client.audit(limit):
                print(json.dumps(made.raw))
        return
    from app.audit.repository import NOBODY, AuditRepository
    from app.jobs.repository import connect
    from app.jobs.settings import StoreSettings
    from app.keys.durations import milliseconds

    since_ms = 0 if since is None else max(0, int(time.time() * 1000) - milliseconds("--since", since))
    settings = StoreSettings()
    log = AuditRepository(connect(settings.redis_url), settings.audit_entries)
    for entry_id, entry in log.newest(tenant or NOBODY, limit, since_ms):
        print(json.dumps({"id": entry_id, **entry}))
