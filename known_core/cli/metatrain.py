"""`known metatrain`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from known_core.cli.options import console, interruptible
from known_core.errors import KnownError

metatrain_app = typer.Typer(help="Train the hyper-model.", no_args_is_help=True)


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

    with interruptible("interrupted; the trajectories made so far are kept"):
        count = collect(
            out,
            data,
            _seconds(budget),
            first_seed,
            lambda made, left_s: console.print(f"{made} trajectories, {left_s / 60:.0f} min left"),
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

    with interruptible("interrupted; nothing was written"), progress_bars(console) as progress:
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


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError) as error:
        raise KnownError("usage", f"--budget is {text!r}", "Give a number and a unit: 90m, 2h, 45s.") from error
