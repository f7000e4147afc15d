"""What a job costs beside the bare sum of its stages: a script that trains and predicts the same, in the same run."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from known_core.client import Client
from known_core.files import write_json
from known_core.sample_data import load_sample, write_imagefolder
from known_core.stack import Stack

_STARTS = 5
_CONFIG: dict[str, Any] = {
    "architecture": "small-cnn", "num_classes": 5, "in_chans": 1, "img_size": 16, "width": 16, "norm": "none",
    "label_names": ["0", "1", "2", "3", "4"],
}  # fmt: skip
_SETTINGS: dict[str, Any] = {
    "forgetting": {"rate": 0.5, "epochs_per_stage": 8, "learning_rate": 1e-3, "batch_size": 64},
    "nowcast": {"controls": []},
    "evaluation": {"seeds": 3, "probe_examples": 200, "probe_epochs": 15, "probe_learning_rates": [1e-3, 3e-3]},
}


def run_overhead(rounds: int, work: Path | None, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Time a job and the script in turn, in both orders.

    Args:
        rounds: of each.
        work: folder to work in; None: that for temporary files.

    Returns:
        ``seconds`` of every round: ``job``, from the request to its end by the service's clock; ``stages``, of the
        script after its imports; ``script``, of its whole process. The worker has done a job before. ``ratio``, of job
        to stages, and ``ratio_to_script``: each the median of the rounds, the least and the most. ``starts``: seconds
        of five starts of the ``api``, until it answers, and of five times ``known --help``.
    """
    with tempfile.TemporaryDirectory(dir=work) as place:
        folder = Path(place)
        _make_inputs(folder)
        seconds: dict[str, list[float]] = {"job": [], "stages": [], "script": []}
        with (
            Stack(folder / "stack", port=0, environment={"KNOWN_CALIBRATE": "false"}) as stack,
            Client(stack.url) as client,
        ):
            uploads = {
                name: client.upload(folder / name) for name in ("model.safetensors", "data.zip", "downstream.zip")
            }
            _job(client, uploads, seed=rounds)  # the worker's first one finds nothing imported yet
            on_progress("warmed up")
            for turn in range(rounds):
                for what in ("job", "script") if turn % 2 == 0 else ("script", "job"):
                    if what == "job":
                        seconds["job"].append(_job(client, uploads, seed=turn))
                    else:
                        for name, taken in _script(folder).items():
                            seconds[name].append(taken)
                    on_progress(f"round {turn + 1}, {what}: {seconds[what][-1]:.1f} s")
            starts = {"api": [_api(stack) for _ in range(_STARTS)], "help": [_help() for _ in range(_STARTS)]}
    ratios = {"ratio": "stages", "ratio_to_script": "script"}
    return {
        "seconds": seconds,
        "starts": starts,
        **{name: _spread(seconds["job"], seconds[other]) for name, other in ratios.items()},
    }


def _spread(job: list[float], other: list[float]) -> dict[str, float]:
    values = [ours / theirs for ours, theirs in zip(job, other, strict=True)]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _make_inputs(folder: Path) -> None:
    """A small classifier of five digits, trained a little, its data, and five other digits to fine-tune on."""
    import torch
    from safetensors.torch import save_file

    from known_core.examples import image_examples
    from known_core.models.registered import build_registered
    from known_core.training import fine_tune

    digits, draw = load_sample("digits"), np.random.default_rng(0)
    source, downstream = digits.of_classes([0, 1, 2, 3, 4]), digits.of_classes([5, 6, 7, 8, 9])
    order, other = draw.permutation(len(source.labels)), draw.permutation(len(downstream.labels))
    write_imagefolder(folder / "data.zip", source.take(order[:720]), source.take(order[720:]))
    write_imagefolder(folder / "downstream.zip", downstream.take(other[:450]), downstream.take(other[450:]))
    torch.manual_seed(0)
    model = build_registered(_CONFIG)
    fine_tune(
        model, image_examples(source.take(order[:720]), 16), epochs=4, learning_rate=2e-3, batch_size=64, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _CONFIG)
    write_json(folder / "settings.json", {**_SETTINGS, "downstream_classes": 5})


def _job(client: Client, uploads: dict[str, str], seed: int) -> float:
    """Seconds of one job, with a seed of its own so that nothing of another is reused."""
    request = {
        **_SETTINGS,
        "model": {"upload_id": uploads["model.safetensors"], "config": _CONFIG},
        "dataset": {"upload_id": uploads["data.zip"]},
        "forgetting": {**_SETTINGS["forgetting"], "seed": seed},
        "evaluation": {**_SETTINGS["evaluation"], "downstream": {"upload_id": uploads["downstream.zip"]}},
    }
    job = client.wait(str(client.enhance(request)["id"]), progress=False)
    assert job.created_at is not None
    assert job.finished_at is not None
    return (job.finished_at - job.created_at).total_seconds()


def _api(stack: Stack) -> float:
    """Seconds from the start of the API's process until it answers."""
    stack.stop_one("api")
    begun = time.perf_counter()
    stack.restart("api")
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{stack.url}/healthz", timeout=5).is_success:
                return time.perf_counter() - begun
        time.sleep(0.01)


def _help() -> float:
    begun = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / "known", "--help"], capture_output=True, check=True)
    return time.perf_counter() - begun


def _script(folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name in ("model.safetensors", "config.json", "settings.json", "data.zip", "downstream.zip"):
            shutil.copy(folder / name, place)
        begun = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-m", "known_core.bench.plain_job", place], capture_output=True, text=True, check=False,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        whole = time.perf_counter() - begun
    if ran.returncode:
        raise RuntimeError(f"the script ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return {"stages": float(ran.stdout.splitlines()[-1]), "script": whole}


def overhead_summary(found: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [f"{name}: {statistics.median(taken):.1f} s" for name, taken in found["seconds"].items()]
    for name, other in {"ratio": "the stages", "ratio_to_script": "the script with its imports"}.items():
        ratio = found[name]
        lines.append(f"job / {other}: {ratio['median']:.3f} [{ratio['least']:.3f}, {ratio['most']:.3f}]")
    for name, what in {"api": "the API, until it answers", "help": "known --help"}.items():
        taken = found["starts"][name]
        lines.append(f"{what}: {statistics.median(taken):.2f} s [{min(taken):.2f}, {max(taken):.2f}]")
    return "\n".join(lines)
