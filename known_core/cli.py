"""The command line. Heavy libraries are imported inside commands, so that --help is quick."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.errors import KnownError
from known_core.processes import keep_memory

app = typer.Typer(help="Better pretrained weights to fine-tune from, without more data.", no_args_is_help=True)
jobs_app = typer.Typer(help="Look at jobs and stop them.", no_args_is_help=True)
metatrain_app = typer.Typer(help="Train the hyper-model.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
bench_app = typer.Typer(help="Measure the method and the service.", no_args_is_help=True)
app.add_typer(metatrain_app, name="metatrain")
app.add_typer(bench_app, name="bench")

_console = Console(stderr=True)
_DEFAULT_SERVER = "http://127.0.0.1:8000"
_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_HUB_CACHE_BYTES = 100 << 30  # what is used least recently goes first

Server = Annotated[str, typer.Option(envvar="KNOWN_SERVER", help="address of the service")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on standard output")]
DataDir = Annotated[Path, typer.Option(envvar="KNOWN_DATA_DIR", help="where everything is kept")]
_DATA_DIR = Path("~/.local/share/known")


def main() -> None:
    """Entry point: errors are one message and a non-zero status."""
    keep_memory()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that contexts clean up
    try:
        app()
    except KnownError as error:
        _console.print(f"[red]error[/red] {error.message} [dim]({error.code})[/dim]", soft_wrap=True)
        if error.hint:
            _console.print(error.hint, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve(port: Annotated[int, typer.Option(help="of the API")] = 8000, data_dir: DataDir = _DATA_DIR) -> None:
    """Start Valkey, the API and a worker on this machine, and leave them running. Ctrl-C stops them."""
    from known_core.stack import Stack

    with _interruptible("stopped"), Stack(data_dir, port) as stack:
        _console.print(f"[bold]{stack.url}[/bold]  API: {stack.url}/docs")
        _console.print(
            "Open to every user of this machine, on the loopback address only: there are no keys yet.", style="yellow"
        )
        _console.print(f"data and logs: {data_dir.expanduser()}   Ctrl-C stops everything")
        while True:
            stack.check()
            time.sleep(1)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="digits or fashion")] = "digits", data_dir: DataDir = _DATA_DIR
) -> None:
    """Run the whole service once on real images: train, upload, enhance, download, verify, compare."""
    from known_core.demo import run_demo

    with _interruptible("interrupted; everything is stopped"):
        run_demo(data, data_dir, _console)


HubToken = Annotated[
    str | None,
    typer.Option(envvar="HF_TOKEN", help="of the Hub; sent with the request, kept sealed until the job has ended"),
]


@app.command()
def enhance(
    model: Annotated[
        str | None,
        typer.Option(help="checkpoint: a folder, a zip, a safetensors file with --config, or hub:user/name[@revision]"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="data it was trained on: a folder, a zip, a parquet, csv or jsonl file, or hub:user/name"),
    ] = None,
    trajectory: Annotated[
        list[str] | None, typer.Option(help="instead of both: five states, the most recent first; repeat")
    ] = None,
    task: Annotated[str | None, typer.Option(help="such as text-classification; default: what the config says")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON: the architecture of a bare state dict")] = None,
    base: Annotated[str | None, typer.Option(help="for a LoRA adapter: the model it was trained on")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="of a data set that has several")] = None,
    split: Annotated[str | None, typer.Option(help="of the data set, to train on; default: train")] = None,
    column: Annotated[list[str] | None, typer.Option(help="ROLE=COLUMN, such as text=review; repeat")] = None,
    label: Annotated[list[str] | None, typer.Option(help="CLASS=LABEL, such as neg=NEGATIVE; repeat")] = None,
    downstream: Annotated[str | None, typer.Option(help="data to fine-tune on in the before/after probe")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="JSON with forgetting, nowcast, evaluation, output, dataset as in the API")
    ] = None,
    epochs_per_stage: Annotated[int | None, typer.Option(help="passes over each stage's subset")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of the forgetting stages")] = None,
    seeds: Annotated[int | None, typer.Option(help="fine-tuning runs for each candidate")] = None,
    select: Annotated[str | None, typer.Option(help="best, or the candidate to deliver, such as x4")] = None,
    push: Annotated[str | None, typer.Option(help="put the result into hub:user/name")] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: a new repository is not private")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="with --push: open a pull request")] = False,
    token: HubToken = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what is understood of the inputs")] = False,
    wait: Annotated[bool, typer.Option(help="follow the job to its end")] = False,
    out: Annotated[Path | None, typer.Option(help="with --wait: download the selected candidate here")] = None,
    server: Server = _DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Enhance a checkpoint with its data, both uploaded or on the Hub; or predict from a trajectory."""
    from known_core.client import Client
    from known_core.terminal import progress_bars, show_resolved

    if out is not None and not wait:
        raise KnownError("usage", "--out needs --wait", "Add --wait.")
    if trajectory is None and (model is None or dataset is None):
        raise KnownError(
            "usage", "there is nothing to enhance", "Give --model and --dataset, or --trajectory five times."
        )
    request: dict[str, Any] = _read_json_file(settings) if settings else {}
    for section, name, value in (
        ("forgetting", "epochs_per_stage", epochs_per_stage),
        ("forgetting", "learning_rate", learning_rate),
        ("evaluation", "seeds", seeds),
        ("evaluation", "select", select),
        ("output", "hub", _push_target(push, public, create_pr)),
    ):
        if value is not None:
            request.setdefault(section, {})[name] = value
    if task is not None:
        request["task"] = task
    for given in filter(None, (model, dataset, base, downstream, *(trajectory or ()))):
        if not _is_hub(given) and not Path(given).exists():
            raise KnownError(
                "file_missing", f"there is no file or folder {given}", "Check the path; on the Hub it is hub:user/name."
            )
    with Client(server) as client:
        with progress_bars(_console) as progress:

            def bring(given: str, name: str) -> dict[str, Any]:
                """The request's form of an input; files are uploaded."""
                if _is_hub(given):
                    return {"hub": _hub_reference(given)}
                bar = progress.add_task(f"uploading {name}", total=None)
                return {
                    "upload_id": client.upload(
                        Path(given), lambda done, all_: progress.update(bar, completed=done, total=all_)
                    )
                }

            if trajectory:
                request["trajectory"] = [bring(state, f"state {index}") for index, state in enumerate(trajectory)]
            if model is not None:
                request["model"] = bring(model, "model")
                if config is not None:
                    request["model"]["config"] = _read_json_file(config)
                if base is not None:
                    request["model"]["base"] = bring(base, "base model")
            if dataset is not None:
                own = _data_settings(dataset_config, split, column, label)
                request["dataset"] = request.get("dataset", {}) | bring(dataset, "dataset") | own
            if downstream is not None:
                evaluation = request.setdefault("evaluation", {})
                evaluation["downstream"] = evaluation.get("downstream", {}) | bring(downstream, "downstream")
        if dry_run:
            answer = client.enhance(request, token=token, dry_run=True)
            if as_json:
                print(json.dumps(answer, indent=2))
            else:
                show_resolved(answer["resolved"], Console())
            return
        job = client.enhance(request, token=token)
        _console.print(f"{job['id']}  {server}{job['urls']['self']}", soft_wrap=True)
        if wait:
            job = _follow(client, job["id"], out)
    _print_job(job, as_json)


def _is_hub(given: str) -> bool:
    return given.startswith("hub:")


def _hub_reference(given: str) -> dict[str, Any]:
    repo_id, at, revision = given.removeprefix("hub:").partition("@")
    return {"repo_id": repo_id, **({"revision": revision} if at else {})}


def _push_target(push: str | None, public: bool, create_pr: bool) -> dict[str, Any] | None:
    if push is None:
        if public or create_pr:
            raise KnownError("usage", "--public and --create-pr need --push", "Add --push hub:user/name.")
        return None
    return {**_hub_reference(push), "private": not public, "create_pr": create_pr}


def _data_settings(
    config: str | None, split: str | None, columns: list[str] | None, labels: list[str] | None
) -> dict[str, Any]:
    given = {
        "config": config,
        "split": split,
        "columns": _pairs("--column", columns, "ROLE=COLUMN, such as text=review"),
        "labels": _pairs("--label", labels, "CLASS=LABEL, such as neg=NEGATIVE"),
    }
    return {name: value for name, value in given.items() if value}


def _pairs(flag: str, given: list[str] | None, form: str) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in given or ())
    if not all(pairs.values()):
        raise KnownError("usage", f"{flag} is {given}", f"Give {form}.")
    return pairs


@jobs_app.command("list")
def jobs_list(
    limit: Annotated[int, typer.Option(help="at most this many, newest first")] = 20,
    status: Annotated[str | None, typer.Option(help="only jobs in this state")] = None,
    server: Server = _DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from known_core.client import Client

    with Client(server) as client:
        page = client.jobs(limit, status=status)
    if as_json:
        print(json.dumps(page, indent=2))
        return
    for job in page["data"]:
        phase = f" ({job['phase']})" if job["phase"] else ""
        print(f"{job['id']}  {job['created_at']}  {job['status']}{phase}")


@jobs_app.command("show")
def jobs_show(job_id: str, server: Server = _DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Show a job, and its report where there is one."""
    from known_core.client import Client
    from known_core.terminal import show_report

    with Client(server) as client:
        job = client.job(job_id)
        _print_job(job, as_json)
        if job["status"] == "succeeded" and not as_json:
            show_report(client.report(job_id), _console)


@jobs_app.command("cancel")
def jobs_cancel(job_id: str, server: Server = _DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Cancel a job."""
    from known_core.client import Client

    with Client(server) as client:
        _print_job(client.cancel(job_id), as_json, fail=False)


@jobs_app.command("republish")
def jobs_republish(
    job_id: str,
    push: Annotated[str | None, typer.Option(help="hub:user/name; default: where the job's request said")] = None,
    candidate: Annotated[str | None, typer.Option(help="such as x4; default: the selected one")] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: a new repository is not private")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="with --push: open a pull request")] = False,
    token: HubToken = None,
    server: Server = _DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Put a finished job's result on the Hub, again or elsewhere, and wait for it."""
    from known_core.client import Client

    request = {"hub": _push_target(push, public, create_pr), "candidate": candidate}
    with Client(server) as client:
        job = client.republish(job_id, request, token=token)
        while job["republishing"]:
            time.sleep(0.5)
            job = client.job(job_id)
    _print_job(job, as_json)


@jobs_app.command("delete")
def jobs_delete(job_id: str, server: Server = _DEFAULT_SERVER) -> None:
    """Delete a job that has ended, with its log and artifacts."""
    from known_core.client import Client

    with Client(server) as client:
        client.delete(job_id)
    print(f"{job_id} deleted")


@jobs_app.command("logs")
def jobs_logs(
    job_id: str,
    tail: Annotated[int, typer.Option(help="last lines")] = 1000,
    server: Server = _DEFAULT_SERVER,
) -> None:
    """Print what a job's process printed."""
    from known_core.client import Client

    with Client(server) as client:
        print(client.logs(job_id, tail), end="")


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
        _interruptible("interrupted; finished shards are kept, run it again to go on"),
        byte_bars(_console) as progress,
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


@metatrain_app.command("collect")
def metatrain_collect(
    out: Annotated[Path, typer.Option(help="folder for the trajectories; those in it are kept")],
    data: Annotated[
        list[str], typer.Option(help="digits, fashion, wordnet, or an imagefolder zip; repeat for several")
    ],
    design: Annotated[str, typer.Option(help="fan (known-v1 reads it) or chain (the paper's)")] = "fan",
    architecture: Annotated[
        list[str] | None, typer.Option(help="train only this network on images; repeat for several; default: all")
    ] = None,
    optimizer: Annotated[
        list[str] | None, typer.Option(help="a transformers name; repeat for several; default: adamw_torch")
    ] = None,
    dtype: Annotated[str, typer.Option(help="of the displacements on disk: float32 or float16")] = "float32",
    budget: Annotated[str, typer.Option(help="time to spend, such as 90m or 2h")] = "30m",
    first_seed: Annotated[int, typer.Option(help="seed of the first trajectory")] = 0,
) -> None:
    """Train small networks and make them forget, until the time is spent. Goes on where it stopped."""
    from known_core.metatrain.collect import collect
    from known_core.networks import IMAGE_ARCHITECTURES

    with _interruptible("interrupted; the trajectories made so far are kept"):
        count = collect(
            out,
            data,
            _seconds(budget),
            first_seed,
            lambda made, left_s: _console.print(f"{made} trajectories, {left_s / 60:.0f} min left"),
            design=design,
            architectures=architecture or IMAGE_ARCHITECTURES,
            dtype=dtype,
            optimizers=optimizer or ("adamw_torch",),
        )
    print(f"{count} trajectories in {out}")


@metatrain_app.command("fit")
def metatrain_fit(
    trajectories: Annotated[Path, typer.Option(help="what `known metatrain collect` made")],
    out: Annotated[Path, typer.Option(help="folder for NAME.safetensors and NAME.json")],
    name: Annotated[str, typer.Option(help="of the hyper-model")] = "known",
    steps: Annotated[int, typer.Option(min=1, help="of Adam, for each kind")] = 4000,
    per_kind: Annotated[int, typer.Option(min=1, help="windows from each trajectory and kind")] = 10_000,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="also fit without each architecture and data set, to test on it")
    ] = False,
) -> None:
    """Fit a hyper-model on collected trajectories and report its skill on held-out ones."""
    from known_core.metatrain.fit import fit
    from known_core.terminal import progress_bars

    with _interruptible("interrupted; nothing was written"), progress_bars(_console) as progress:
        tasks: dict[str, Any] = {}

        def on_step(what: str, step: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=step)

        report = fit(
            trajectories,
            name,
            out,
            steps=steps,
            per_kind=per_kind,
            seed=seed,
            leave_out=leave_out,
            on_step=on_step,
        )
    print(json.dumps(report, indent=2))


@bench_app.command("transfer")
def bench_transfer(
    out: Annotated[Path, typer.Option(help="folder for transfer.json, .md and .svg; finished work is kept in it")],
    protocol: Annotated[
        list[str] | None, typer.Option(help="by name; repeat for several; default: all of the tier")
    ] = None,
    tier: Annotated[str, typer.Option(help="cpu (hours on two cores) or gpu")] = "cpu",
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=ZIP: where an imagefolder is, such as cifar10=cifar10.zip; repeat")
    ] = None,
    hypermodel: Annotated[
        list[str] | None, typer.Option(help="a shipped name, or NAME=FILE; repeat; default: all that ship")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="folder with the authors' KNOWN_*.h5 (needs h5py)")] = None,
    wnn: Annotated[Path | None, typer.Option(help="folder with WNN's weights in the same three files")] = None,
    methods: Annotated[str, typer.Option(help="regular expression: which methods, besides naive and oracles")] = "",
    workers: Annotated[int, typer.Option(min=1, help="processes, one thread each")] = 2,
) -> None:
    """Compare every method with naive transfer and with really having more data. Goes on where it stopped."""
    from known_core.bench.run import run_transfer
    from known_core.terminal import progress_bars

    with _interruptible("interrupted; finished work is kept, run it again to go on"):
        with progress_bars(_console) as progress:
            tasks: dict[str, Any] = {}

            def on_units(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=total)
                progress.update(tasks[name], completed=done, total=total)

            text = run_transfer(
                out,
                protocols=protocol,
                tier=tier,
                data=data or [],
                hypermodels=hypermodel,
                reference=reference,
                wnn=wnn,
                methods=methods,
                workers=workers,
                command=" ".join(["known", *sys.argv[1:]]),
                on_units=on_units,
            )
        print(text)


@bench_app.command("nowcast")
def bench_nowcast(
    model: Annotated[
        list[str] | None, typer.Option(help="resnet18, gpt2 or gpt2-xl; repeat for several; default: all")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="repeat for several; default: all that run on the device")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    hypermodel: Annotated[str, typer.Option(help="known-paper or known-v1")] = "known-paper",
    recurrences: Annotated[int, typer.Option(min=1, max=4, help="predictions of each weight in one run")] = 1,
    reference: Annotated[
        Path | None, typer.Option(help="folder with the authors' KNOWN_*.h5: also time Keras (needs tensorflow, h5py)")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="folder to keep the generated states in (20 GB for all)")] = None,
    as_json: AsJson = False,
) -> None:
    """Time every engine on models of 12 M, 124 M and 1.6 B parameters, against this machine's own ceilings."""
    from known_core.bench.nowcast import MODELS, run_nowcast
    from known_core.terminal import show_engines

    with _interruptible("interrupted"):
        rows = run_nowcast(
            models=model or MODELS,
            engines=engine,
            device=device,
            hypermodel=hypermodel,
            recurrences=recurrences,
            reference=reference,
            work=work,
            on_progress=lambda what: _console.print(what, style="dim"),
        )
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show_engines(rows, Console())


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
        _interruptible(f"interrupted; what is finished is kept in {work}, run it again to go on"),
        job_bars(_console) as draw,
    ):
        comparison = run_again(manifest, work, inputs, hub, draw)
    if as_json:
        print(json.dumps(comparison.as_dict(), indent=2))
    else:
        show_comparison(comparison, Console())
        _console.print(f"the new result: {comparison.artifacts}", soft_wrap=True)
    if not comparison.identical and (exact or not comparison.explained):
        raise typer.Exit(1)


def _cache_folder() -> Path:
    """Known's folder in the user's cache (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "known"


def _follow(client: Any, job_id: str, out: Path | None) -> dict[str, Any]:
    """Show a job to its end, then its report; download what was selected."""
    from known_core.terminal import show_events, show_report

    try:
        show_events(client.events(job_id), _console)
    except KeyboardInterrupt:
        _console.print(f"\nno longer waiting; the job goes on. known jobs show {job_id}")
        raise typer.Exit(_INTERRUPTED) from None
    job: dict[str, Any] = client.job(job_id)
    if job["status"] == "succeeded":
        show_report(client.report(job_id), _console)
        if job["result"]["hub_url"]:
            where = job["result"]["pr_url"] or job["result"]["hub_url"]
            _console.print(f"published: {where}  commit {job['result']['commit']}", soft_wrap=True)
        if out is not None:
            count = client.download(job_id, out, only=job["result"]["selected"])
            _console.print(f"{count} files in {out}, every sha256 as in manifest.json")
    return job


def _print_job(job: dict[str, Any], as_json: bool, fail: bool = True) -> None:
    if as_json:
        print(json.dumps(job, indent=2))
    else:
        print(f"{job['id']} {job['status']}")
        if job["result"]:
            print(f"selected: {job['result']['selected']}")
        if job["result"] and job["result"]["hub_url"]:
            print(f"published: {job['result']['pr_url'] or job['result']['hub_url']}")
    unpublished = job["result"] and job["result"]["publish_error"]
    if (error := job["error"] or unpublished) and not as_json:
        _console.print(f"[red]{error['code']}[/red] {error['message']}", soft_wrap=True)
        _console.print(error["hint"], soft_wrap=True)
        if unpublished:
            _console.print(f"The result is safe: known jobs republish {job['id']}", soft_wrap=True)
    if fail and (job["status"] in ("failed", "canceled") or unpublished):
        raise typer.Exit(1)


def _read_json_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KnownError("file_invalid", f"{path} cannot be read as JSON: {error}", "Check the file.") from error
    if not isinstance(value, dict):
        raise KnownError("file_invalid", f"{path} holds a JSON {type(value).__name__}", "It must be an object.")
    return value


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError) as error:
        raise KnownError("usage", f"--budget is {text!r}", "Give a number and a unit: 90m, 2h, 45s.") from error


@contextmanager
def _interruptible(message: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _console.print(f"\n{message}")
        raise typer.Exit(_INTERRUPTED) from None
