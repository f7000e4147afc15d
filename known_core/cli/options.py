"""What commands share: flags, the console, completion, and how an interruption ends."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.errors import KnownError

console = Console(stderr=True)
DEFAULT_SERVER = "http://127.0.0.1:8000"
DATA_DIR = Path("~/.local/share/known")
INTERRUPTED = 130  # 128 + SIGINT, as shells count
_COMPLETION_S = 1.5  # for a service to answer while somebody waits for a completion
_COMPLETED = 50  # jobs that are offered

Server = Annotated[str, typer.Option(envvar="KNOWN_SERVER", help="address of the service")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="KNOWN_API_KEY", help="of a service that asks for one; other users see flags: prefer KNOWN_API_KEY"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
DataDir = Annotated[Path, typer.Option(envvar="KNOWN_DATA_DIR", help="where everything is kept")]
HubToken = Annotated[
    str | None,
    typer.Option(envvar="HF_TOKEN", help="of the Hub; sent with the request, kept sealed until the job has ended"),
]


def complete_job(context: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """The newest jobs' ids, with what each is doing; nothing where the service does not answer at once."""
    import httpx

    from known_core.client.connection import connection

    given = context.params
    with suppress(KnownError, httpx.HTTPError, ValueError, KeyError):
        options = connection(given.get("server"), given.get("api_key")) | {"timeout": _COMPLETION_S}
        with httpx.Client(**options) as service:
            jobs = service.get("/v1/jobs", params={"limit": _COMPLETED}).json()["data"]
        for job in jobs:
            if job["id"].startswith(incomplete):
                yield job["id"], " ".join(filter(None, (job["status"], job["phase"], job["created_at"])))


JobId = Annotated[str, typer.Argument(help="id of a job", autocompletion=complete_job)]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Ctrl-C inside prints the message and ends the command as shells expect it."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\n{message}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def read_json_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: KnownError ``file_invalid``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KnownError("file_invalid", f"{path} cannot be read as JSON: {error}", "Check the file.") from error
    if not isinstance(value, dict):
        raise KnownError("file_invalid", f"{path} holds a JSON {type(value).__name__}", "It must be an object.")
    return value


def parse_size(text: str) -> int:
    """Bytes, from text such as "5GB" or "200MB" (powers of ten). Raises: KnownError ``usage``."""
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+)(B|KB|MB|GB)", text.upper())
    if not match:
        raise KnownError("usage", f"--size is {text[:40]!r}", "Give a number of B, KB, MB or GB, such as 200MB.")
    return int(match[1]) * units[match[2]]
