"""`known enhance` and `known jobs`: what talks to a service."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.cli.options import (
    DEFAULT_SERVER,
    INTERRUPTED,
    ApiKey,
    AsJson,
    HubToken,
    Server,
    console,
    read_json_file,
)
from known_core.errors import KnownError

jobs_app = typer.Typer(help="Look at jobs and stop them.", no_args_is_help=True)


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
    webhook: Annotated[str | None, typer.Option(help="https URL to tell when the job has ended")] = None,
    token: HubToken = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what is understood of the inputs, and what the job would take")
    ] = False,
    wait: Annotated[bool, typer.Option(help="follow the job to its end")] = False,
    out: Annotated[Path | None, typer.Option(help="with --wait: download the selected candidate here")] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Enhance a checkpoint with its data, both uploaded or on the Hub; or predict from a trajectory."""
    from known_core.client import Client
    from known_core.terminal import progress_bars, show_estimate, show_resolved

    if out is not None and not wait:
        raise KnownError("usage", "--out needs --wait", "Add --wait.")
    if trajectory is None and (model is None or dataset is None):
        raise KnownError(
            "usage", "there is nothing to enhance", "Give --model and --dataset, or --trajectory five times."
        )
    request: dict[str, Any] = read_json_file(settings) if settings else {}
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
    if webhook is not None:
        request["webhook"] = {"url": webhook}
    for given in filter(None, (model, dataset, base, downstream, *(trajectory or ()))):
        if not _is_hub(given) and not Path(given).exists():
            raise KnownError(
                "file_missing", f"there is no file or folder {given}", "Check the path; on the Hub it is hub:user/name."
            )
    with Client(server, api_key) as client:
        with progress_bars(console) as progress:

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
                    request["model"]["config"] = read_json_file(config)
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
                show_estimate(answer["estimate"], answer["no_estimate"], Console())
            return
        job = client.enhance(request, token=token)
        console.print(f"{job['id']}  {server}{job['urls']['self']}", soft_wrap=True)
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
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        page = client.jobs(limit, status=status)
    if as_json:
        print(json.dumps(page, indent=2))
        return
    for job in page["data"]:
        phase = f" ({job['phase']})" if job["phase"] else ""
        print(f"{job['id']}  {job['created_at']}  {job['status']}{phase}")


@jobs_app.command("show")
def jobs_show(job_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show a job, and its report where there is one."""
    from known_core.client import Client
    from known_core.terminal import show_report

    with Client(server, api_key) as client:
        job = client.job(job_id)
        _print_job(job, as_json)
        if job["status"] == "succeeded" and not as_json:
            show_report(client.report(job_id), console)


@jobs_app.command("cancel")
def jobs_cancel(job_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Cancel a job."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        _print_job(client.cancel(job_id), as_json, fail=False)


@jobs_app.command("pause")
def jobs_pause(job_id: str, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Stop a job and keep what is finished, until it is resumed."""
    from known_core.client import Client

    with Client(server) as client:
        _print_job(client.pause(job_id), as_json)


@jobs_app.command("resume")
def jobs_resume(job_id: str, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Go on with a paused job, after its last finished stage."""
    from known_core.client import Client

    with Client(server) as client:
        _print_job(client.resume(job_id), as_json)


@jobs_app.command("republish")
def jobs_republish(
    job_id: str,
    push: Annotated[str | None, typer.Option(help="hub:user/name; default: where the job's request said")] = None,
    candidate: Annotated[str | None, typer.Option(help="such as x4; default: the selected one")] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: a new repository is not private")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="with --push: open a pull request")] = False,
    token: HubToken = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Put a finished job's result on the Hub, again or elsewhere, and wait for it."""
    from known_core.client import Client

    request = {"hub": _push_target(push, public, create_pr), "candidate": candidate}
    with Client(server, api_key) as client:
        job = client.republish(job_id, request, token=token)
        while job["republishing"]:
            time.sleep(0.5)
            job = client.job(job_id)
    _print_job(job, as_json)


@jobs_app.command("delete")
def jobs_delete(job_id: str, server: Server = DEFAULT_SERVER, api_key: ApiKey = None) -> None:
    """Delete a job that has ended, with its log and artifacts."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        client.delete(job_id)
    print(f"{job_id} deleted")


@jobs_app.command("logs")
def jobs_logs(
    job_id: str,
    tail: Annotated[int, typer.Option(help="last lines")] = 1000,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
) -> None:
    """Print what a job's process printed."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print(client.logs(job_id, tail), end="")


def _follow(client: Any, job_id: str, out: Path | None) -> dict[str, Any]:
    """Show a job to its end, then its report; download what was selected."""
    from known_core.terminal import show_events, show_report

    try:
        show_events(client.events(job_id), console)
    except KeyboardInterrupt:
        console.print(f"\nno longer waiting; the job goes on. known jobs show {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    job: dict[str, Any] = client.job(job_id)
    if job["status"] == "succeeded":
        show_report(client.report(job_id), console)
        if job["result"]["hub_url"]:
            where = job["result"]["pr_url"] or job["result"]["hub_url"]
            console.print(f"published: {where}  commit {job['result']['commit']}", soft_wrap=True)
        if out is not None:
            count = client.download(job_id, out, only=job["result"]["selected"])
            console.print(f"{count} files in {out}, every sha256 as in manifest.json")
    return job


def _print_job(job: dict[str, Any], as_json: bool, fail: bool = True) -> None:
    if as_json:
        print(json.dumps(job, indent=2))
    else:
        print(f"{job['id']} {job['status']}")
        if job["status"] == "paused":
            print(f"It holds no worker, and its finished stages are kept: known jobs resume {job['id']}")
        elif job["pausing"]:
            print("It pauses as soon as its worker has stopped.")
        if job["result"]:
            print(f"selected: {job['result']['selected']}")
        if job["result"] and job["result"]["hub_url"]:
            print(f"published: {job['result']['pr_url'] or job['result']['hub_url']}")
    unpublished = job["result"] and job["result"]["publish_error"]
    if (error := job["error"] or unpublished) and not as_json:
        console.print(f"[red]{error['code']}[/red] {error['message']}", soft_wrap=True)
        console.print(error["hint"], soft_wrap=True)
        if unpublished:
            console.print(f"The result is safe: known jobs republish {job['id']}", soft_wrap=True)
    if fail and (job["status"] in ("failed", "canceled") or unpublished):
        raise typer.Exit(1)
