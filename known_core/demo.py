"""`known demo`: the whole service on real images, in one command."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from known_core.client import Client
from known_core.errors import KnownError
from known_core.files import atomic_folder, read_json, sha256_file, write_json
from known_core.stack import Stack
from known_core.terminal import progress_bars, show_events, show_report

if TYPE_CHECKING:
    from known_core.tasks.base import Labelled


@dataclass(frozen=True)
class _Plan:
    """Classes pre-trained on and fine-tuned on, and how many examples of each there are."""

    source: list[int]
    downstream: list[int]
    train: int
    test: int
    image_size: int  # pixels
    probe_examples: int
    pool: int
    pool_test: int


_PLANS = {
    "digits": _Plan([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], 720, 180, 16, 50, 450, 440),
    "fashion": _Plan([0, 1, 2, 3, 4, 5], [6, 7, 8, 9], 7200, 1800, 28, 200, 1000, 3000),
}
_PRETRAINING_EPOCHS = 12
_ACCURACY_TOLERANCE = 0.005  # batches of another size round otherwise; an example or two may tip over


def run_demo(data: str, data_dir: Path, console: Console) -> None:
    """Train a small network, enhance it through the service, download and verify the result, print the report.

    Args:
        data: "digits" or "fashion".
        data_dir: everything is kept below ``data_dir/demo``.

    Raises:
        KnownError: whatever went wrong, after everything that was started has been stopped.
    """
    if data not in _PLANS:
        raise KnownError("sample_missing", f"there is no demo data {data!r}", f"Choose one of {sorted(_PLANS)}.")
    home = data_dir.expanduser().resolve() / "demo"
    console.print(f"[bold]1. A checkpoint and its data[/bold]: a small batch-normalised CNN on {data}")
    inputs = _prepare(data, home, console)
    console.print("[bold]2. The service[/bold]: Valkey, the API, a worker")
    with Stack(home, port=0, environment={"KNOWN_ACCESS": "open"}) as stack, Client(stack.url) as client:
        console.print(f"   {stack.url}  (logs in {stack.logs})", soft_wrap=True)
        console.print("[bold]3. POST /enhance[/bold]")
        job = client.enhance(
            model={"path": inputs / "model.safetensors", "config": read_json(inputs / "config.json")},
            dataset=inputs / "data.zip",
            downstream=inputs / "downstream.zip",
            rate=0.5,
            epochs_per_stage=4,
            learning_rate=1e-3,
            seeds=5,
            probe_examples=_PLANS[data].probe_examples,
            progress=False,
        )
        console.print(f"   {job.id}")
        try:
            show_events(job.events(), console)
        except KeyboardInterrupt:
            job.cancel()
            raise
        job = job.wait(progress=False)  # it has ended: this raises where it failed
        console.print("[bold]4. The result[/bold]")
        result = home / "results" / job.id
        with progress_bars(console) as progress:
            task = progress.add_task("downloading", total=None)
            count = job.download(
                result, on_bytes=lambda done, total: progress.update(task, completed=done, total=total)
            )
        console.print(f"   {count} files in {result}, every sha256 as in manifest.json", soft_wrap=True)
        report = read_json(result / "report.json")
        accuracy = _load_and_try(result / report["selected"], inputs)
        reported = report["own_task"][report["selected"]]["accuracy"]
        if abs(accuracy - reported) > _ACCURACY_TOLERANCE:
            raise KnownError(
                "demo_mismatch",
                f"{report['selected']} reaches {accuracy:.4f} on its own task here, {reported:.4f} in the report",
                "This is a bug in known: please report it.",
            )
        console.print(f"   {report['selected']} loaded: {100 * accuracy:.1f} % on its own task, as in the report")
        show_report(report, console)
    console.print("everything is stopped")


def _prepare(data: str, home: Path, console: Console) -> Path:
    """The demo's checkpoint and data, made once: model.safetensors, config.json, data.zip, downstream.zip."""
    import torch
    from safetensors.torch import save_file

    from known_core.models.registered import build_registered
    from known_core.sample_data import load_sample, write_imagefolder
    from known_core.training import fine_tune

    plan = _PLANS[data]
    folder = home / "inputs" / f"{data}-{sha256_file(Path(__file__))[:12]}"
    if folder.is_dir():
        console.print(f"   kept from the last run: {folder}", soft_wrap=True)
        return folder
    sample = load_sample(data)
    generator = np.random.default_rng(0)
    source, downstream = sample.of_classes(plan.source), sample.of_classes(plan.downstream)
    order, order_downstream = generator.permutation(len(source.labels)), generator.permutation(len(downstream.labels))
    config = {
        "architecture": "small-cnn",
        "num_classes": len(source.classes),
        "in_chans": 1,
        "img_size": plan.image_size,
        "label_names": sorted(source.classes),  # as an image folder numbers its classes
    }
    with atomic_folder(folder) as temporary:
        write_imagefolder(
            temporary / "data.zip",
            source.take(order[: plan.train]),
            source.take(order[plan.train : plan.train + plan.test]),
        )
        write_imagefolder(
            temporary / "downstream.zip",
            downstream.take(order_downstream[: plan.pool]),
            downstream.take(order_downstream[plan.pool : plan.pool + plan.pool_test]),
        )
        write_json(temporary / "config.json", config)
        torch.manual_seed(0)
        model = build_registered(config)
        with TemporaryDirectory() as unpacked, progress_bars(console) as progress:
            train, _ = _open_images(temporary, Path(unpacked))
            task = progress.add_task("pre-training", total=None)
            fine_tune(
                model,
                train.items,
                epochs=_PRETRAINING_EPOCHS,
                learning_rate=2e-3,
                batch_size=64,
                seed=0,
                device=torch.device("cpu"),
                schedule="cosine",
                on_step=lambda step, total, loss: progress.update(task, completed=step, total=total),
            )
        save_file(model.state_dict(), temporary / "model.safetensors", metadata={"format": "pt"})
    return folder


def _open_images(inputs: Path, folder: Path) -> "tuple[Labelled, Labelled | None]":
    """The demo's data as the service reads it, unpacked into ``folder``."""
    from known_core.checkpoint.source import FolderSource, unpack
    from known_core.data import inspect_data, read_data
    from known_core.spec import DataSettings
    from known_core.tasks import TASKS

    task = TASKS["image-classification"]
    network = task.network(read_json(inputs / "config.json"))
    processor, roles = task.processor(network, FolderSource(inputs), None), task.roles(network)
    unpack(inputs / "data.zip", folder / "images", single_file_name="data.parquet")
    files = inspect_data(FolderSource(folder / "images"), roles, DataSettings())
    train, test = read_data(folder / "images", files, roles, folder / "cache")
    classes = np.arange(len(files.classes))
    return (
        task.examples(train, classes, processor),
        task.examples(test, classes, processor) if test is not None else None,
    )


def _load_and_try(candidate: Path, inputs: Path) -> float:
    """Load a result as its user would, with torch and safetensors; its accuracy on the demo's test split."""
    import torch
    from safetensors.torch import load_file

    from known_core.models.registered import build_registered

    model = build_registered(read_json(candidate / "config.json")).eval()
    model.load_state_dict(load_file(candidate / "model.safetensors"))
    with TemporaryDirectory() as unpacked, torch.inference_mode():
        _, test = _open_images(inputs, Path(unpacked))
        assert test is not None
        items = [test.items[index] for index in range(len(test.labels))]
        predicted = model(torch.stack([item["pixel_values"] for item in items]))["logits"].argmax(1)
    return float((predicted.numpy() == test.labels).mean())
