"""`known audit`: the operator reads the audit log, of any tenant, from the store itself."""

import json
from typing import Annotated

import typer


def audit(
    tenant: Annotated[str | None, typer.Option(help="whose; default: requests that had no good key")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 100,
) -> None:
    """Print the audit log, newest first, a JSON object a line: who changed what, and who was refused."""
    from app.audit.repository import NOBODY, AuditRepository
    from app.jobs.repository import connect
    from app.jobs.settings import StoreSettings

    for entry_id, entry in AuditRepository(connect(StoreSettings().redis_url)).newest(tenant or NOBODY, limit):
        print(json.dumps({"id": entry_id, **entry}))
