"""`known keys`: the operator makes, lists and revokes API keys, on the store itself."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from app.keys.caller import Scope
from known_core.errors import KnownError

keys_app = typer.Typer(help="Make and revoke API keys, as the operator.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
_console = Console(stderr=True)


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="whose key it is: what it makes, only keys of this tenant see")],
    name: Annotated[str, typer.Option(help="what it is for")] = "",
    scope: Annotated[list[Scope] | None, typer.Option(help="read, write, admin; repeat; default: read, write")] = None,
    expires: Annotated[str | None, typer.Option(help="after 12h, 90d, 1y; default: never")] = None,
) -> None:
    """Make a key. It is printed once, alone on standard output, and cannot be read again."""
    from app.keys.durations import milliseconds
    from app.keys.record import new_key

    lasts_ms = None if expires is None else milliseconds("--expires", expires)
    repository, audit = _store()
    scopes = frozenset(scope or (Scope.READ, Scope.WRITE))
    key, token = new_key(tenant, name, scopes, repository.now(), lasts_ms)
    repository.add(key)
    audit(tenant, "key created", key.id)
    print(token)
    until = _time(key.expires_at) if key.expires_at else "it is revoked"
    _console.print(f"key {key.id} of {tenant}: {', '.join(sorted(scopes))}, until {until}")
    _console.print("It is not kept. Send it as Authorization: Bearer, or set KNOWN_API_KEY.")


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, newest first. Their secrets are not known to anybody."""
    repository, _ = _store()
    keys = repository.all()
    if as_json:
        print(json.dumps([_shown(key) for key in keys], indent=2))
        return
    for key in keys:
        shown = _shown(key)
        print(f"{key.id}  {key.tenant}  {shown['state']}  {','.join(shown['scopes'])}  {key.name}")


@keys_app.command("revoke")
def revoke(key_id: str) -> None:
    """Revoke a key: within five seconds no request with it is answered."""
    repository, audit = _store()
    key = repository.get(key_id)
    if key is None:
        raise KnownError("key_not_found", f"there is no key {key_id[:80]!r}", "known keys list shows them.")
    repository.revoke(key_id)
    audit(key.tenant, "key revoked", key_id)
    print(f"{key_id} revoked")


def _store() -> Any:
    from app.audit.repository import AuditRepository
    from app.jobs.repository import connect
    from app.jobs.settings import StoreSettings
    from app.keys.repository import KeyRepository

    settings = StoreSettings()
    redis = connect(settings.redis_url)
    log = AuditRepository(redis, settings.audit_entries)
    return KeyRepository(redis), lambda tenant, action, key: log.add(tenant, {"action": action, "key": key})


def _shown(key: Any) -> dict[str, Any]:
    times = ("created_at", "expires_at", "revoked_at", "last_used_at")
    expired = key.expires_at is not None and key.expires_at < datetime.now(UTC).timestamp() * 1000
    state = "revoked" if key.revoked_at else "expired" if expired else "active"
    return {
        "id": key.id, "tenant": key.tenant, "name": key.name, "scopes": sorted(key.scopes), "state": state,
        **{name: _time(getattr(key, name)) for name in times},
    }  # fmt: skip


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
