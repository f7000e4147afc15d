"""What networks ask of a device, and what a job on it will take."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from known_core.bench.estimate import JOBS, run_estimate
from known_core.costs import KINDS, Uncountable, count
from known_core.device import Device
from known_core.estimate import Estimate, NoEstimate, estimate
from known_core.sample_data import ImageArrays, write_imagefolder
from known_core.spec import EvaluationSettings, ForgettingSettings, JobSpec, LandscapeSettings, NowcastSettings
from tests.devices import TWO_CORES, scaled
from tests.known_core.tasks import tiny


class _Network(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(inputs).sum()}


def amounts(network: nn.Module, inputs: Tensor, examples: int, *, training: bool) -> dict[str, float]:
    work = count(network, {"inputs": inputs}).work(examples, training=training)
    return dict(zip(KINDS, work.tolist(), strict=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_are_counted_exactly(device: str) -> None:
    """2 n m FLOPs an example forward, and twice that back: for the weights, and (but in the first layer) the inputs."""
    with torch.device(device):
        network = _Network(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))
    forward, both = (amounts(network, torch.zeros(2, 12), 8, training=training) for training in (False, True))
    assert forward["matmul"] == 8 * 2 * (12 * 20 + 20 * 5)
    assert both["matmul"] == 8 * 2 * (2 * 12 * 20 + 3 * 20 * 5)
    assert both["calls"] > forward["calls"] > 0


def test_convolutions_are_told_apart_by_their_channels() -> None:
    network = _Network(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32))
    found = amounts(network, torch.zeros(2, 3, 8, 8), 4, training=False)
    assert found["convolutions"] == 3
    assert found["narrow"] == 4 * 2 * 64 * 9 * 3 * 16
    assert found["convolution"] == 4 * 2 * 64 * 16 * 32
    assert found["depthwise"] == 4 * 2 * 64 * 9 * 32


def test_what_an_example_keeps_for_the_way_back() -> None:
    costs = count(_Network(nn.Linear(100, 100), nn.Sigmoid()), {"inputs": torch.zeros(2, 100)})
    assert costs.saved == 4 * (100 + 100)  # the layer's inputs, the sigmoid's outputs
    assert (costs.parameters, costs.tensors) == (10_100, 2)


def test_what_depends_on_the_batch_and_what_does_not() -> None:
    """The gradient of an embedding is as large as the table, whatever the batch."""
    network = _Network(nn.Embedding(5000, 8))
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    two, twenty = (amounts(network, tokens, size, training=True) for size in (2, 20))
    bytes_of = [found["cached"] + found["streamed"] for found in (two, twenty)]
    assert 5000 * 8 * 4 < bytes_of[0] < bytes_of[1] < 1.5 * bytes_of[0]


def test_a_network_that_looks_at_values_is_counted_where_it_is_small() -> None:
    class Looks(_Network):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return super().forward(inputs) if inputs.sum().item() >= 0 else {}

    with torch.device("meta"):
        small, large = Looks(nn.Linear(10, 10)), Looks(nn.Linear(10, 3_000_000))
    assert count(small, {"inputs": torch.zeros(2, 10)}).parameters == 110
    with pytest.raises(Uncountable, match="meta"):
        count(large, {"inputs": torch.zeros(2, 10)})


@pytest.fixture(scope="module")
def images(digits: ImageArrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("estimate") / "data.zip"
    write_imagefolder(path, digits.of_classes([0, 1, 2, 3, 4]).take(np.arange(300)))
    return path


@pytest.fixture(scope="module")
def vit(images: Path) -> Path:
    return tiny.save_vit(images.parent / "vit")


def of(device: Device = TWO_CORES, **spec: Any) -> Estimate:
    return estimate(JobSpec(**spec), device)


def test_an_estimate_adds_up(images: Path, vit: Path) -> None:
    found = of(model=vit, dataset=images)
    assert sum(found.by_phase.values()) == pytest.approx(found.seconds.expected)
    assert list(found.by_phase) == [
        "starting", "downloading", "evaluating_before", "forgetting", "nowcasting", "calibrating", "evaluating_after",
        "charting", "packaging",
    ]  # fmt: skip
    assert found.seconds.low < found.seconds.expected < found.seconds.high
    assert found.gpu_memory is None
    assert "AMD EPYC, 2 cores, calibrated 2026-11-26T16:46:28Z" in found.basis
    assert json.loads(json.dumps(found.as_dict()))["memory_bytes"]["expected"] > TWO_CORES.memory_bytes


def test_a_device_of_half_the_speed_takes_twice_as_long(images: Path, vit: Path) -> None:
    once, twice = (of(scaled(TWO_CORES, factor), model=vit, dataset=images) for factor in (1, 2))
    assert twice.seconds.expected == pytest.approx(2 * once.seconds.expected)
    assert twice.memory == once.memory


def test_each_setting_costs_where_it_is_used(images: Path, vit: Path) -> None:
    def phases(**spec: Any) -> dict[str, float]:
        return of(model=vit, dataset=images, **spec).by_phase

    plain = phases()
    seeds = phases(evaluation=EvaluationSettings(seeds=6))
    assert seeds["evaluating_after"] > 1.4 * plain["evaluating_after"]
    assert seeds["forgetting"] == plain["forgetting"]
    epochs = phases(forgetting=ForgettingSettings(epochs_per_stage=100))
    assert epochs["forgetting"] > 10 * plain["forgetting"]
    alone = phases(nowcast=NowcastSettings(controls=(), recurrences=1))
    assert alone["evaluating_after"] == pytest.approx(plain["evaluating_after"] / 5)
    assert alone["forgetting"] < plain["forgetting"]
    larger = phases(nowcast=NowcastSettings(hypermodel="known-paper"))
    assert larger["nowcasting"] > plain["nowcasting"]
    fine = phases(evaluation=EvaluationSettings(landscape=LandscapeSettings(points=27)))
    without = phases(evaluation=EvaluationSettings(landscape=LandscapeSettings(points=0)))
    assert without["charting"] < plain["charting"] < fine["charting"] / 3


def test_a_gpu_s_memory_is_that_of_the_training(images: Path, vit: Path) -> None:
    gpu = Device(**{**asdict(TWO_CORES), "type": "cuda", "accelerator_bytes": 500 << 20})
    small, large = (
        of(gpu, model=vit, dataset=images, forgetting=ForgettingSettings(micro_batch_size=size, batch_size=64))
        for size in (8, 64)
    )
    assert small.gpu_memory is not None
    assert large.gpu_memory is not None
    assert 500 << 20 < small.gpu_memory.expected < large.gpu_memory.expected


def test_every_kind_of_job_has_an_estimate(tmp_path: Path) -> None:
    """Every other one of the benchmark; the slow test below has them all."""
    for number, make in enumerate(list(JOBS.values())[::2]):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = of(**make(folder))
        assert 5 < found.seconds.expected < 300
        assert found.disk.expected > 100_000


def test_what_is_longer_takes_longer(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, **tiny.labels(tiny.CLASSES)}
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification", **wide)
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    short, long = (of(model=model, dataset=data, forgetting=ForgettingSettings(max_length=size)) for size in (8, 40))
    assert short.seconds.expected < long.seconds.expected


def test_why_there_is_none(tmp_path: Path, images: Path, vit: Path) -> None:
    with pytest.raises(NoEstimate) as caught:
        of(model=vit, dataset=images.parent / "vit")
    assert caught.value.reason == "inputs_not_sampled"


def test_what_another_version_says_of_a_device_is_no_calibration() -> None:
    said = asdict(TWO_CORES)
    assert Device.parse(said) == TWO_CORES
    assert Device.parse({**said, "of_tomorrow": 1.0}) is None
    assert Device.parse({name: value for name, value in said.items() if name != "step"}) is None
    assert Device.parse({**said, "training": {"calls": 1e-5}}) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_calibration_of_this_machine(tmp_path: Path) -> None:
    """A real one, and what it says of every job; how good estimates are on a quiet machine is in docs/estimate.md."""
    assert len(JOBS) >= 10
    found = run_estimate(None, tmp_path)
    assert [row["job"] for row in found["jobs"]] == list(JOBS)
    for row in found["jobs"]:
        assert 0.2 < row["seconds"]["estimated"] / row["seconds"]["actual"] < 5
        assert 0.5 < row["memory_bytes"]["estimated"] / row["memory_bytes"]["actual"] < 2
    assert {field.name for field in fields(Device)} == set(asdict(TWO_CORES))
