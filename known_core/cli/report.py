"""`known report`: what a job found, in the terminal or as a page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.cli.options import DEFAULT_SERVER, ApiKey, AsJson, Server, console, read_json_file
from known_core.errors import KnownError


def report(
    job: Annotated[str, typer.Argument(metavar="ID", help="a job's id, or the path of its report.json")],
    html: Annotated[Path | None, typer.Option(help="save the report as one HTML page in this file")] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Draw a job's report: gains with their intervals, and the curves of loss and forgetting."""
    from known_core.terminal_report import draw_report

    found = _read(job, server, api_key)
    if html is not None:
        from known_core.files import atomic_path
        from known_core.report.html import render_html

        with atomic_path(html) as temporary:
            temporary.write_text(render_html(found), encoding="utf-8")
        console.print(f"the page: {html}", soft_wrap=True)
    if as_json:
        print(json.dumps(found, indent=2))
    elif html is None:
        draw_report(found, Console())


def _read(job: str, server: str, api_key: str | None) -> dict[str, Any]:
    from known_core.client import Client

    if not job.endswith(".json"):
        with Client(server, api_key) as client:
            return dict(client.report(job))
    found = read_json_file(Path(job))
    if "conclusion" not in found:
        raise KnownError("file_invalid", f"{job} is no report", "Give report.json of a job's artifacts.")
    return found
