"""A finished job's artifacts without a job: a tiny real ResNet as every candidate, figures from small arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from known_core.changes import QUANTILES
from known_core.comparison import UNCHANGED, ProbeResult
from known_core.files import canonical_json, read_json, write_json
from known_core.manifest import write_manifest
from known_core.plane import Plane, Point
from known_core.report import build_report, render_markdown
from known_core.report.html import render_html
from known_core.spec import JobSpec
from known_core.tasks.base import Scores

Drawn = TypeVar("Drawn")
_DRAWN: dict[Any, Any] = {}
BASE_CARD = "---\nlicense: apache-2.0\ntags: [vision]\n---\n\n# The base model\n"
SOURCES = {
    "model": {"hub": {"repo_id": "alice/base", "revision": "a" * 40}, "sha256": "1" * 64},
    "dataset": {
        "hub": {"repo_id": "alice/data", "config": "small", "split": "train", "revision": "b" * 40}, "sha256": "2" * 64
    },
    "downstream": {"sha256": "3" * 64},
}  # fmt: skip
GAINS = {"x2": 0.03, "x4": 0.05, "x8": 0.01, "continued": 0.02, "swa": 0.05}  # over 0.60, on the transfer probe
HYPERMODEL = {"name": "known-v1", "sha256": "c" * 64, "design": "fan"}


def sample_report(gains: dict[str, float] = GAINS, **changes: Any) -> dict[str, Any]:
    """A report whose candidates gain what ``gains`` says on the probe, and half of it on their own task."""
    generator = np.random.default_rng(0)
    order, noise = generator.permutation(1000), generator.normal(0, 0.002, (len(gains) + 1, 3))
    means = {UNCHANGED: 0.0, **gains}
    report = build_report(
        JobSpec(model=Path("m"), dataset=Path("d")),
        inputs={
            "task": "image-classification",
            "metric": "accuracy",
            "library": "transformers",
            "sources": SOURCES,
            "architecture": "ResNetForImageClassification",
            "dataset": {"format": "parquet", "train": {"cat": 500, "dog": 500}, "test": {"cat": 500, "dog": 500}},
            "evaluation_source": "test split",
            "downstream_source": "given",
            "sample": [{"image": "8 x 8 L", "label": "cat"}],
        },
        hypermodel=HYPERMODEL,
        weights_predicted={"conv": 1200, "fc": 80, "carried": 40},
        forgetting_accuracy=[0.80, 0.81, 0.78, 0.74, 0.69],
        forgetting_examples=[1000, 1000, 500, 250, 125],
        scores={
            name: Scores((order < 800 + 500 * gain).astype(float), np.full(1000, 0.5 - gain))
            for name, gain in means.items()
        },
        probes={
            name: ProbeResult(1e-3, {}, (0.6 + gain + row).tolist())
            for (name, gain), row in zip(means.items(), noise, strict=True)
        },
        losses=sample_losses(),
        weight_changes=sample_changes(),
        plane=sample_plane(list(gains)),
    )
    return {**report, **changes}


def sample_losses() -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    stages = {"state 1": 1000, "state 2": 500, "state 3": 250, "state 4": 125, "swa": 1000}
    return [
        {
            "name": name,
            "examples": examples,
            "curve": [
                (step, float(0.2 + np.exp(-step / 40) + generator.normal(0, 0.05)))
                for step in range(1, examples // 5 + 1)
            ],
        }
        for name, examples in stages.items()
    ]


def sample_changes() -> dict[str, Any]:
    """Of a small residual network: normal differences, wider in later layers."""
    generator, tensors = np.random.default_rng(2), []
    names = ["stem.weight", "stem.bias", *(f"layer.{i}.conv.weight" for i in range(8)), "head.weight", "head.bias"]
    for place, name in enumerate(names):
        relative = generator.normal(0.01 * place, 0.03 + 0.01 * place, 500)
        counts, _ = np.histogram(relative, 31)
        tensors.append({
            "name": name, "kind": "bias" if name.endswith("bias") else "conv", "weights": 500, "size": 0.1,
            "change": float(np.sqrt(np.mean(relative**2))),
            "quantiles": {str(share): float(np.quantile(relative, share)) for share in QUANTILES},
            "histogram": {"low": float(relative.min()), "high": float(relative.max()), "counts": counts.tolist()},
        })  # fmt: skip
    return {"candidate": "x4", "tensors": tensors, "left_out": 0}


def sample_plane(candidates: list[str]) -> dict[str, Any]:
    """States that leave the given weights one by one, candidates on the other side, in a bowl."""
    points = {f"state {k}": Point(1.0 + 0.2 * k, 0.5 * k - 0.9, 0.3) for k in range(1, 5)}
    points |= {name: Point(-0.7 * k - 0.5, 0.3 * k - 0.6, 0.8) for k, name in enumerate(candidates)}
    a, b = np.linspace(-4, 3, 8), np.linspace(-1.5, 2, 8)

    def loss(a: Any, b: Any) -> Any:
        return 0.4 + 0.05 * (a + 0.5) ** 2 + 0.2 * (b - 0.2) ** 2

    return Plane(np.full((2, 4), 0.5), (0.8, 0.15), points, 20.0, 1.0).as_dict() | {
        "surface": {
            "a": a.tolist(), "b": b.tolist(), "loss": loss(a[None], b[:, None]).tolist(),
            "at": {"unchanged": 0.43, **{name: float(loss(point.a, point.b)) for name, point in points.items()}},
            "examples": 64, "batch_norm": 64,
        }
    }  # fmt: skip


def write_candidate(folder: Path, seed: int) -> None:
    """A ResNet of 3 million weights (12 MB: large enough for parts), and the files beside it."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 512], depths=[1, 1], layer_type="basic",
        id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD)
    (folder / "notes").mkdir()
    (folder / "notes" / "of the base.txt").write_text("ü")


def drawn_once(draw: Callable[[dict[str, Any]], Drawn]) -> Callable[[dict[str, Any]], Drawn]:
    """The same, drawn once a report: a drawing takes a second or more, and is the same for the same report."""

    def drawn(report: dict[str, Any]) -> Drawn:
        key = draw, canonical_json(report)
        if key not in _DRAWN:
            _DRAWN[key] = draw(report)
        found: Drawn = _DRAWN[key]
        return found

    return drawn


def write_artifacts(folder: Path, report: dict[str, Any] | None = None) -> Path:
    """``unchanged`` and ``x4`` with report and manifest, as a job leaves them."""
    report = report or sample_report()
    for seed, name in enumerate((UNCHANGED, "x4")):
        write_candidate(folder / name, seed)
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(drawn_once(render_html)(report), encoding="utf-8")
    write_manifest(folder, facts())
    return folder


def facts() -> dict[str, Any]:
    """What a manifest says besides the files."""
    return {
        "hypermodel": HYPERMODEL,
        "seconds": {"inputs": 0.5, "fan-0": 10.0, "fan-1": 5.0, "evaluation-x2": 7.25, "nowcast": 1.0},
        "device": "cpu",
        "engine": "cpu",
    }


def sample_manifest() -> dict[str, Any]:
    files = [{"path": f"x4/{name}", "bytes": 1, "sha256": "d" * 64} for name in ("config.json", "model.safetensors")]
    return {"files": files, "versions": {"python": "3.11", "cuda": None, "known": "0.1.0"}, **facts()}


def change_weights(folder: Path) -> None:
    """Other weights, and a manifest that knows of them."""
    path = folder / "x4" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    write_manifest(folder, {key: manifest[key] for key in facts()})
