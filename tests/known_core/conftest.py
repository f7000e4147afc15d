"""What the tests of known_core share: a seeded hyper-model and the inputs of the smallest real job."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from known_core.cli import main
from known_core.examples import image_examples
from known_core.hypermodel import Known
from known_core.models.registered import build_registered
from known_core.sample_data import ImageArrays, load_sample, write_imagefolder
from known_core.scale_free import ScaleFreeKnown
from known_core.spec import EvaluationSettings, ForgettingSettings, JobSpec
from known_core.training import fine_tune

Run = Callable[..., tuple[int, str, str]]

# no example database: tests write below tmp_path only
settings.register_profile("known_core", database=None, deadline=None, derandomize=True)
settings.load_profile("known_core")


@pytest.fixture(scope="session")
def digits() -> ImageArrays:
    """scikit-learn's 1,797 digits of 8 x 8 pixels."""
    return load_sample("digits")


@pytest.fixture(scope="session")
def hypermodel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hyper-model with seeded random weights."""
    path = tmp_path_factory.mktemp("hypermodel") / "seeded.safetensors"
    torch.manual_seed(0)
    Known({"name": "seeded"}).save(path)
    return path


def seeded_scale_free(seed: int = 0, size: float = 0.05) -> ScaleFreeKnown:
    """A scale-free hyper-model that says something: a new one predicts Θ_0."""
    torch.manual_seed(seed)
    known = ScaleFreeKnown({"name": "seeded-fan"})
    with torch.no_grad():
        for parameter in known.parameters():
            parameter.normal_(std=size)
    return known.eval()


@pytest.fixture(scope="session")
def fan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scale-free hyper-model with seeded random weights."""
    path = tmp_path_factory.mktemp("fan") / "seeded-fan.safetensors"
    seeded_scale_free().save(path)
    return path


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory: pytest.TempPathFactory, digits: ImageArrays) -> JobSpec:
    """The smallest job: a CNN of width 4 on the digits 0-4, fine-tuned on the digits 5-9."""
    folder = tmp_path_factory.mktemp("tiny")
    order = np.random.default_rng(0).permutation(890)
    source, downstream = digits.of_classes([0, 1, 2, 3, 4]), digits.of_classes([5, 6, 7, 8, 9])
    train = source.take(order[:240])
    write_imagefolder(folder / "data.zip", train, source.take(order[240:320]))
    write_imagefolder(folder / "downstream.zip", downstream.take(order[:120]))
    config = {"architecture": "small-cnn", "num_classes": 5, "in_chans": 1, "img_size": 8, "width": 4,
              "label_names": ["0", "1", "2", "3", "4"]}  # fmt: skip
    torch.manual_seed(0)
    model = build_registered(config)
    fine_tune(
        model, image_examples(train, 8), epochs=2, learning_rate=3e-3, batch_size=32, seed=0, device=torch.device("cpu")
    )
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return JobSpec(
        model=folder / "model.safetensors",
        config=config,
        dataset=folder / "data.zip",
        downstream=folder / "downstream.zip",
        forgetting=ForgettingSettings(learning_rate=1e-3, batch_size=32),
        evaluation=EvaluationSettings(seeds=3, probe_examples=20, probe_epochs=1, probe_learning_rates=(1e-3,)),
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Calls the entry point; returns exit status, standard output, and standard error in one line."""
    monkeypatch.delenv("KNOWN_HYPERMODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "500")
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["known", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, said = capsys.readouterr()
        return status, out, " ".join(said.split())

    yield call
    signal.signal(signal.SIGTERM, handler)
