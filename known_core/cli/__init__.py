"""The command line. Heavy libraries are imported inside commands, so that --help is quick."""

import json
import os
import signal
import sys
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.cli.bench import bench_app
from known_core.cli.capabilities import capabilities
from known_core.cli.enhance import enhance
from known_core.cli.jobs import jobs_app
from known_core.cli.metatrain import metatrain_app
from known_core.cli.options import DATA_DIR, AsJson, DataDir, console, interruptible
from known_core.cli.report import report
from known_core.cli.uploads import uploads_app
from known_core.cli.webhooks import webhooks_app
from known_core.errors import KnownError
from known_core.processes import keep_memory

app = typer.Typer(
    help="Better pretrained weights to fine-tune from, without more data.",
    no_args_is_help=True,
    rich_markup_mode=None,  # boxes cost a third of what --help takes
)
_HUB_CACHE_BYTES = 100 << 30  # what is used least recently goes first


def main() -> None:
    """Entry point: errors are one message and a non-zero status."""
    keep_memory()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that contexts clean up
    try:
        app()
    except KnownError as error:
        console.print(f"[red]error[/red] {error.message} [dim]({error.code})[/dim]", soft_wrap=True)
        if error.hint:
            console.print(error.hint, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve(port: Annotated[int, typer.Option(help="of the API")] = 8000, data_dir: DataDir = DATA_DIR) -> None:
    """Start Valkey, the API and a worker on this machine, and leave them running. Ctrl-C stops them."""
    from known_core.stack import Stack

    with interruptible("stopped"), Stack(data_dir, port) as stack:
        console.print(f"[bold]{stack.url}[/bold]  API: {stack.url}/docs")
        if os.environ.get("KNOWN_ACCESS", "open") == "open":
            console.print(
                "OPEN: no API key is asked for; every user of this machine may use it, and no other machine. "
                "KNOWN_ACCESS=keys changes that.", style="bold yellow", soft_wrap=True,
            )  # fmt: skip
        console.print(f"data and logs: {data_dir.expanduser()}   Ctrl-C stops everything", soft_wrap=True)
        while True:
            stack.check()
            time.sleep(1)


@app.command()
def demo(data: Annotated[str, typer.Option(help="digits or fashion")] = "digits", data_dir: DataDir = DATA_DIR) -> None:
    """Run the whole service once on real images: train, upload, enhance, download, verify, compare."""
    from known_core.demo import run_demo

    with interruptible("interrupted; everything is stopped"):
        run_demo(data, data_dir, console)


app.command()(enhance)
app.command()(report)
app.add_typer(jobs_app, name="jobs")
app.add_typer(uploads_app, name="uploads")
app.add_typer(webhooks_app, name="webhooks")
app.command()(capabilities)


@app.command()
def nowcast(
    states: Annotated[
        list[str],
        typer.Argument(help="five checkpoints (files, folders, or URLs as s3://…), THETA_0, the most recent, first"),
    ],
    out: Annotated[Path, typer.Option(help="folder to make x2, x4, x8 and manifest.json in")],
    recurrences: Annotated[int, typer.Option(min=1, max=4, help="steps back")] = 3,
    rate: Annotated[float, typer.Option(min=0.1, max=0.95, help="the trajectory's r; names the outputs")] = 0.5,
    hypermodel: Annotated[
        str | None,
        typer.Option(
            envvar="KNOWN_HYPERMODEL", help="known-v1 (reads a fan), known-paper (reads a chain), or a file of your own"
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="of the files written, such as 5GB; default: THETA_0's own files")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes, each with shards of its own")] = 1,
    as_json: AsJson = False,
) -> None:
    """Predict weights one, two, three steps back from five states, without any data. Goes on where it stopped."""
    from known_core.nowcast_files import nowcast_files
    from known_core.terminal import byte_bars

    with (
        interruptible("interrupted; finished shards are kept, run it again to go on"),
        byte_bars(console) as progress,
    ):
        tasks: dict[str, Any] = {}

        def on_bytes(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done, total=total)

        manifest = nowcast_files(
            states,
            out,
            recurrences=recurrences,
            rate=rate,
            hypermodel=hypermodel,
            max_shard_size=max_shard_size,
            workers=workers,
            on_bytes=on_bytes,
        )
    if as_json:
        print(json.dumps(manifest, indent=2))
    else:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in manifest["weights_predicted"].items())
        print(f"{out}: {', '.join(manifest['outputs'])}; weights: {counts}")
        used, design = manifest["hypermodel"]["name"], manifest["hypermodel"]["design"]
        print(f"{used} read the states as a {design}, on the {manifest['engine']} engine.")
        print("Batch-normalisation statistics are those of THETA_0: re-estimate them on your data before use.")


app.add_typer(metatrain_app, name="metatrain")
app.add_typer(bench_app, name="bench")
# The service's own, which the library knows nothing of. Of this distribution alone: to look through all takes 50 ms.
for _operators in distribution("known").entry_points.select(group="known.commands"):
    _command = _operators.load()
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_operators.name)
    else:
        app.command(_operators.name)(_command)


@app.command()
def reproduce(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of a job's artifacts, or known/manifest.json")],
    model: Annotated[Path | None, typer.Option(help="the model the job was given, if it was not on the Hub")] = None,
    base: Annotated[Path | None, typer.Option(help="likewise: the base model of an adapter")] = None,
    dataset: Annotated[Path | None, typer.Option(help="likewise: the data")] = None,
    downstream: Annotated[Path | None, typer.Option(help="likewise: the data of the probe")] = None,
    state: Annotated[
        list[Path] | None, typer.Option(help="likewise: a state of a trajectory; repeat, the most recent first")
    ] = None,
    work: Annotated[Path, typer.Option(help="folder for fetched inputs, stages and the result; it is kept")] = Path(
        "known-reproduce"
    ),
    token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", help="for the Hub; default: the one huggingface_hub stored")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="exit with 1 unless every byte is the same")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a finished job again from its manifest, on this machine, and compare. Goes on where it stopped."""
    from huggingface_hub import get_token

    from known_core.hub import Hub
    from known_core.reproduce import reproduce as run_again
    from known_core.terminal import job_bars, show_comparison

    named = {"model": model, "base": base, "dataset": dataset, "downstream": downstream}
    inputs = {name: path for name, path in named.items() if path is not None}
    inputs |= {f"state-{index}": path for index, path in enumerate(state or ())}
    hub = Hub(None, token or get_token(), _cache_folder() / "hub", _HUB_CACHE_BYTES)
    with (
        interruptible(f"interrupted; what is finished is kept in {work}, run it again to go on"),
        job_bars(console) as draw,
    ):
        comparison = run_again(manifest, work, inputs, hub, draw)
    if as_json:
        print(json.dumps(comparison.as_dict(), indent=2))
    else:
        show_comparison(comparison, Console())
        console.print(f"the new result: {comparison.artifacts}", soft_wrap=True)
    if not comparison.identical and (exact or not comparison.explained):
        raise typer.Exit(1)


def _cache_folder() -> Path:
    """Known's folder in the user's cache (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "known"
