"""`known uploads`: send files ahead of jobs, and remove them."""

from pathlib import Path
from typing import Annotated

import typer

from known_core.cli.options import DEFAULT_SERVER, ApiKey, AsJson, Server, console, interruptible, print_json

uploads_app = typer.Typer(help="Send files ahead of jobs, look at them and remove them.", no_args_is_help=True)


@uploads_app.command("add")
def uploads_add(
    path: Annotated[Path, typer.Argument(help="a file, or a folder, which is zipped")],
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
) -> None:
    """Send a file and print the upload's id, for requests. Goes on where it stopped."""
    from known_core.client import Client
    from known_core.terminal import byte_bars

    with (
        Client(server, api_key) as client,
        interruptible("interrupted; run it again to go on"),
        byte_bars(console) as bars,
    ):
        bar = bars.add_task(path.name, total=None)
        upload_id = client.upload(path, lambda done, total: bars.update(bar, completed=done, total=total))
    print(upload_id)


@uploads_app.command("show")
def uploads_show(
    upload_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Show an upload, and how much of it is there."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        upload = client.upload_info(upload_id)
    if as_json:
        print_json(upload.raw)
    else:
        size = "?" if upload.bytes is None else f"{upload.bytes:,}"
        print(f"{upload.id}  {upload.status}  {upload.received:,} of {size} bytes  {upload.filename}")


@uploads_app.command("delete")
def uploads_delete(upload_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None) -> None:
    """Delete an upload that no job needs any more."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        client.delete_upload(upload_id)
    print(f"{upload_id} deleted")
