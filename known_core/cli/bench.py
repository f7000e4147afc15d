"""`known bench`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from known_core.cli.options import AsJson, console, interruptible, parse_size

bench_app = typer.Typer(help="Measure the method and the service.", no_args_is_help=True)


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

    with interruptible("interrupted; finished work is kept, run it again to go on"):
        with progress_bars(console) as progress:
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

    with interruptible("interrupted"):
        rows = run_nowcast(
            models=model or MODELS,
            engines=engine,
            device=device,
            hypermodel=hypermodel,
            recurrences=recurrences,
            reference=reference,
            work=work,
            on_progress=lambda what: console.print(what, style="dim"),
        )
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show_engines(rows, Console())


@bench_app.command("upload")
def bench_upload(
    size: Annotated[str, typer.Option(help="of one upload, such as 5GB or 200MB")] = "5GB",
    rounds: Annotated[int, typer.Option(min=1, help="of each kind, one after the other")] = 5,
    work: Annotated[Path | None, typer.Option(help="folder to write to; default: that for temporary files")] = None,
    as_json: AsJson = False,
) -> None:
    """Time uploads to the real API beside a bare ASGI handler that writes the body to a file, and watch its memory."""
    from known_core.bench.upload import run_upload, upload_summary

    with interruptible("interrupted"):
        found = run_upload(parse_size(size), rounds, work, lambda what: console.print(what, style="dim"))
    print(json.dumps(found, indent=2) if as_json else upload_summary(found))


@bench_app.command("estimate")
def bench_estimate(
    job: Annotated[list[str] | None, typer.Option(help="by name; repeat for several; default: all")] = None,
    work: Annotated[Path | None, typer.Option(help="folder to work in; default: that for temporary files")] = None,
    busy: Annotated[
        bool,
        typer.Option("--busy", help="others use the machine: one thread, and processor time instead of the clock's"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate jobs of every kind, run them, and compare. Ten minutes on two cores."""
    from known_core.bench.estimate import estimate_summary, run_estimate

    with interruptible("interrupted"):
        found = run_estimate(job, work, lambda what: console.print(what, style="dim"), busy=busy)
    print(json.dumps(found, indent=2) if as_json else estimate_summary(found))


@bench_app.command("overhead")
def bench_overhead(
    rounds: Annotated[int, typer.Option(min=1, help="of the job and of the script, one after the other")] = 3,
    work: Annotated[Path | None, typer.Option(help="folder to work in; default: that for temporary files")] = None,
    as_json: AsJson = False,
) -> None:
    """Time a job of the service beside a plain script with the same trainings and the nowcast. Minutes on two cores."""
    from known_core.bench.overhead import overhead_summary, run_overhead

    with interruptible("interrupted"):
        found = run_overhead(rounds, work, lambda what: console.print(what, style="dim"))
    print(json.dumps(found, indent=2) if as_json else overhead_summary(found))


@bench_app.command("large")
def bench_large(
    recurrences: Annotated[int, typer.Option(min=1, max=4, help="1: x2 alone, 3: x2, x4 and x8")] = 3,
    gpus: Annotated[
        list[int] | None, typer.Option(min=1, help="of the machine; repeat for several; default: 1 and 8")
    ] = None,
    gpu_memory: Annotated[str, typer.Option(help="of each GPU, such as 80GB or 141GB")] = "80GB",
    as_json: AsJson = False,
) -> None:
    """What jobs of language models of 0.1 to 70 B parameters cost, on paper: nothing is run."""
    from known_core.bench.large import Constants, large_summary, table

    found = table(recurrences, tuple(gpus or (1, 8)), Constants(gpu_bytes=parse_size(gpu_memory)))
    print(json.dumps([each.as_dict() for each in found], indent=2) if as_json else large_summary(found))
