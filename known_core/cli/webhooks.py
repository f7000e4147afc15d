"""`known webhooks`: what receivers were told, and what it is signed with."""

import json
from typing import Annotated, Any

import typer

from known_core.cli.options import DEFAULT_SERVER, AsJson, Server

webhooks_app = typer.Typer(help="Look at webhook deliveries and make them again.", no_args_is_help=True)


@webhooks_app.command("deliveries")
def webhooks_deliveries(
    job: Annotated[str | None, typer.Option(help="only this job's")] = None,
    status: Annotated[str | None, typer.Option(help="only those pending, delivered or failed")] = None,
    limit: Annotated[int, typer.Option(help="at most this many, newest first")] = 20,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List webhook deliveries, newest first, with every attempt."""
    from known_core.client import Client

    with Client(server) as client:
        page = client.deliveries(job, status, limit)
    if as_json:
        print(json.dumps(page, indent=2))
        return
    for delivery in page["data"]:
        _print_delivery(delivery)


@webhooks_app.command("redeliver")
def webhooks_redeliver(delivery_id: str, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Deliver a webhook again, now."""
    from known_core.client import Client

    with Client(server) as client:
        delivery = client.redeliver(delivery_id)
    if as_json:
        print(json.dumps(delivery, indent=2))
    else:
        _print_delivery(delivery)


@webhooks_app.command("secret")
def webhooks_secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="make a new one; the old one signs beside it for 24 hours")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Print the secret that receivers verify webhooks with."""
    from known_core.client import Client

    with Client(server) as client:
        answer = client.webhook_secret(rotate=rotate)
    print(json.dumps(answer, indent=2) if as_json else answer["secret"])


def _print_delivery(delivery: dict[str, Any]) -> None:
    again = f"  again at {delivery['next_attempt_at']}" if delivery["next_attempt_at"] else ""
    print(f"{delivery['id']}  {delivery['event']}  {delivery['status']}  {delivery['url']}{again}")
    for attempt in delivery["attempts"]:
        print(f"  {attempt['at']}  {attempt['error'] or attempt['status']}  {attempt['duration_ms']} ms")
