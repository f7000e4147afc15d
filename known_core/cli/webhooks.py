"""`known webhooks`: what receivers were told, and what it is signed with."""

from typing import TYPE_CHECKING, Annotated

import typer

from known_core.cli.options import DEFAULT_SERVER, ApiKey, AsJson, Server, print_json

if TYPE_CHECKING:
    from known_core.client import Delivery

webhooks_app = typer.Typer(help="Look at webhook deliveries and make them again.", no_args_is_help=True)


@webhooks_app.command("deliveries")
def webhooks_deliveries(
    job: Annotated[str | None, typer.Option(help="only this job's")] = None,
    status: Annotated[str | None, typer.Option(help="only those pending, delivered or failed")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 20,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List webhook deliveries, newest first, with every attempt."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        deliveries = list(client.deliveries(job, status, limit))
    if as_json:
        print_json({"object": "list", "data": [delivery.raw for delivery in deliveries]})
        return
    for delivery in deliveries:
        _print_delivery(delivery)


@webhooks_app.command("show")
def webhooks_show(
    delivery_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show one delivery, with every attempt."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        delivery = client.delivery(delivery_id)
    if as_json:
        print_json(delivery.raw)
    else:
        _print_delivery(delivery)


@webhooks_app.command("redeliver")
def webhooks_redeliver(
    delivery_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Deliver a webhook again, now."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        delivery = client.redeliver(delivery_id)
    if as_json:
        print_json(delivery.raw)
    else:
        _print_delivery(delivery)


@webhooks_app.command("secret")
def webhooks_secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="make a new one; the old one signs beside it for 24 hours")
    ] = False,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print the secret that receivers verify webhooks with."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        answer = client.webhook_secret(rotate=rotate)
    if as_json:
        print_json(answer.raw)
    else:
        print(answer.secret)


def _print_delivery(delivery: "Delivery") -> None:
    again = f"  again at {delivery['next_attempt_at']}" if delivery.next_attempt_at else ""
    print(f"{delivery.id}  {delivery.event}  {delivery.status}  {delivery.url}{again}")
    for attempt in delivery.attempts:
        print(f"  {attempt['at']}  {attempt.error or attempt.status}  {attempt.duration_ms} ms")
