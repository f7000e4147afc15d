"""A finished job's artifacts without a job: a tiny real ResNet as every candidate, figures from small arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from known_core.comparison import UNCHANGED, ProbeResult
from known_core.files import read_json, write_json
from known_core.manifest import write_manifest
from known_core.report import build_report, render_markdown
from known_core.spec import JobSpec
from known_core.tasks.base import Scores

BASE_CARD = "---\nlicense: apache-2.0\ntags: [vision]\n---\n\n# The base model\n"
SOURCES = {
    "model": {"hub": {"repo_id": "alice/base", "revision": "a" * 40}, "sha256": "1" * 64},
    "dataset": {
        "hub": {"repo_id": "alice/data", "config": "small", "split": "train", "revision": "b" * 40}, "sha256": "2" * 64
    },
    "downstream": {"sha256": "3" * 64},
}  # fmt: skip
GAINS = {"x2": 0.03, "x4": 0.05, "x8": 0.01, "continued": 0.02, "swa": 0.05}  # over 0.60, on the transfer probe
HYPERMODEL = {"name": "known-v1", "sha256": "c" * 64}


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
    )
    return {**report, **changes}


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


def write_artifacts(folder: Path, report: dict[str, Any] | None = None) -> Path:
    """``unchanged`` and ``x4`` with report and manifest, as a job leaves them."""
    report = report or sample_report()
    for seed, name in enumerate((UNCHANGED, "x4")):
        write_candidate(folder / name, seed)
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
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
