"""`known enhance`: start a job."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.cli.following import follow, print_job
from known_core.cli.options import (
    DEFAULT_SERVER,
    ApiKey,
    AsJson,
    HubToken,
    Server,
    console,
    print_json,
    read_json_file,
)
from known_core.errors import KnownError


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
        bool, typer.Option("--dry-run", help="only say what is understood of the inputs, and what it would take")
    ] = False,
    wait: Annotated[bool, typer.Option(help="follow the job to its end; Ctrl-C ends the waiting alone")] = False,
    out: Annotated[Path | None, typer.Option(help="with --wait: download the selected candidate here")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="the same command with the same key is the same job, for two days")
    ] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Enhance a checkpoint with its data, both uploaded or on the Hub; or predict from a trajectory."""
    from known_core.client import Client
    from known_core.terminal import show_estimate, show_resolved

    if out is not None and not wait:
        raise KnownError("usage", "--out needs --wait", "Add --wait.")
    if trajectory is None and (model is None or dataset is None):
        raise KnownError(
            "usage", "there is nothing to enhance", "Give --model and --dataset, or --trajectory five times."
        )
    request = read_json_file(settings) if settings else {}
    for given in filter(None, (model, dataset, base, downstream, *(trajectory or ()))):
        if not given.startswith("hub:") and not Path(given).exists():
            raise KnownError(
                "file_missing", f"there is no file or folder {given}", "Check the path; on the Hub it is hub:user/name."
            )
    flags: dict[str, Any] = {
        "epochs_per_stage": epochs_per_stage,
        "learning_rate": learning_rate,
        "seeds": seeds,
        "select": select,
        "push": push_target(push, public, create_pr),
        "task": task,
        "webhook": None if webhook is None else {"url": webhook},
    }
    wanted: dict[str, Any] = {
        "request": request,
        "model": _model(model, config, base),
        "dataset": _dataset(dataset, dataset_config, split, column, label),
        "trajectory": trajectory or None,
        "downstream": downstream,
        "token": token,
        **{name: value for name, value in flags.items() if value is not None},
    }
    with Client(server, api_key) as client:
        if dry_run:
            answer = client.estimate(**wanted)
            if as_json:
                print_json(answer.raw)
            else:
                show_resolved(answer.resolved, Console())
                show_estimate(answer, Console())
            return
        job = client.enhance(**wanted, idempotency_key=idempotency_key)
        console.print(f"{job.id}  {server}{job['urls']['self']}", soft_wrap=True)
        if wait:
            job = follow(client, job.id, out)
        print_job(job, as_json)


def push_target(push: str | None, public: bool, create_pr: bool) -> dict[str, Any] | None:
    """Where `--push` puts a result, in the API's form."""
    from known_core.client.requests import hub_reference

    if push is None:
        if public or create_pr:
            raise KnownError("usage", "--public and --create-pr need --push", "Add --push hub:user/name.")
        return None
    return {**hub_reference(push), "private": not public, "create_pr": create_pr}


def _model(model: str | None, config: Path | None, base: str | None) -> dict[str, Any] | None:
    if model is None:
        return None
    given = {"path": model, "config": read_json_file(config) if config else None, "base": base}
    return {name: value for name, value in given.items() if value is not None}


def _dataset(
    dataset: str | None,
    config: str | None,
    split: str | None,
    columns: list[str] | None,
    labels: list[str] | None,
) -> dict[str, Any] | None:
    if dataset is None:
        return None
    given = {
        "path": dataset,
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
