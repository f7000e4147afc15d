"""`known audit`: the operator reads the audit log, of any tenant, from the store itself."""

import json
import time
from typing import Annotated

import typer


def audit(
    tenant: Annotated[str | None, typer.Option(help="whose; default: requests that had no good key")] = None,
    since: Annotated[str | None, typer.Option(help="of the last 12h, 90d, 1y; default: all that is kept")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 100,
) -> None:
    """Print the audit log, newest first, a JSON object a line: who changed what, and who was refused."""
    from app.audit.repository import NOBODY, AuditRepository
    from app.jobs.repository import connect
    from app.jobs.settings import StoreSettings
    from app.keys.durations import milliseconds

    since_ms = 0 if since is None else max(0, int(time.time() * 1000) - milliseconds("--since", since))
    settings = StoreSettings()
    log = AuditRepository(connect(settings.redis_url), settings.audit_entries)
    for entry_id, entry in log.newest(tenant or NOBODY, limit, since_ms):
        print(json.dumps({"id": entry_id, **entry}))
