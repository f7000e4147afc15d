"""known_core.enhance: any torch module, any data set, no server."""

import copy
import html
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import known_core
from known_core import Enhanced, Probe
from known_core.errors import KnownError
from known_core.library import correct
from known_core.manifest import verify_manifest
from known_core.sample_data import ImageArrays


def pairs(digits: ImageArrays, classes: list[int], begin: int, end: int) -> TensorDataset:
    """(input, label) pairs of some classes, (1, 8, 8) and an int64."""
    chosen = digits.of_classes(classes)
    order = np.random.default_rng(0).permutation(len(chosen.labels))[begin:end]
    images = torch.from_numpy(chosen.images[order]).float().reshape(-1, 1, 8, 8) / 255
    return TensorDataset(images, torch.from_numpy(chosen.labels[order]).long())


@pytest.fixture(scope="module")
def source(digits: ImageArrays) -> TensorDataset:
    return pairs(digits, [0, 1, 2, 3, 4], 0, 240)


@pytest.fixture(scope="module")
def held_out(digits: ImageArrays) -> TensorDataset:
    return pairs(digits, [0, 1, 2, 3, 4], 240, 400)


@pytest.fixture(scope="module")
def model(source: TensorDataset) -> nn.Module:
    """A network of no library, with batch normalisation."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    plain_training(made, DataLoader(source, 32, shuffle=True), epochs=3)
    return made


def plain_training(model: nn.Module, loader: "DataLoader[Any]", epochs: int = 1) -> None:
    """A loop as people write it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_candidates_probed_and_saved(
    model: nn.Module, source: TensorDataset, held_out: TensorDataset, digits: ImageArrays, tmp_path: Path
) -> None:
    def new_head(network: nn.Module) -> nn.Module:
        network[4] = nn.Linear(512, 5)  # type: ignore[operator]
        return network

    before = copy.deepcopy(model.state_dict())
    probe = Probe(
        pairs(digits, [5, 6, 7, 8, 9], 0, 200), pairs(digits, [5, 6, 7, 8, 9], 200, 400), new_head,
        examples=30, epochs=2, learning_rates=(1e-2,),
    )  # fmt: skip
    result = known_core.enhance(
        model, DataLoader(source, batch_size=32), probe=probe, evaluate=lambda candidate: correct(candidate, held_out)
    )
    assert same(dict(model.state_dict()), before)
    assert list(result.candidates) == ["unchanged", "x2", "x4", "x8", "continued", "swa"]
    assert same(result.candidates["unchanged"], before)
    for name in ("x2", "x4", "x8", "continued", "swa"):
        state = result.candidates[name]
        assert not torch.equal(state["0.weight"], before["0.weight"])
        assert not torch.equal(state["1.running_mean"], before["1.running_mean"])  # calibrated for these weights
        copy.deepcopy(model).load_state_dict(state)
    rows = result.report["transfer"]
    assert {name: len(row["accuracy"]) for name, row in rows.items()} == dict.fromkeys(result.candidates, 3)
    assert min(row["mean"] for row in rows.values()) > 0.5  # ten classes' worth of chance is far below
    own = result.report["own_task"]["unchanged"]["accuracy"]
    assert own == pytest.approx(float(np.mean(correct(model, held_out))))
    assert own > 0.8
    assert result.selected in result.candidates
    assert html.escape(result.report.conclusion) in result._repr_html_()

    fresh = copy.deepcopy(model)
    result.load(fresh, "x4")
    assert same(dict(fresh.state_dict()), result.candidates["x4"])
    saved = result.save(tmp_path / "saved")
    assert verify_manifest(saved) == 7  # six candidates and the report
    assert "Before and after" in str(result.report)
    with pytest.raises(KnownError, match="output_exists"):
        result.save(tmp_path / "saved")


def test_a_training_loop_of_ones_own_and_a_folder_that_goes_on(
    model: nn.Module, source: TensorDataset, held_out: TensorDataset, tmp_path: Path
) -> None:
    seen: list[int] = []

    def train(network: nn.Module, loader: "DataLoader[Any]") -> None:
        if len(seen) == 2 and not resumed:
            raise KeyboardInterrupt
        seen.append(len(loader.dataset))  # type: ignore[arg-type]
        plain_training(network, loader)

    def enhance() -> Enhanced:
        return known_core.enhance(
            model, source, train=train, evaluate=lambda candidate: correct(candidate, held_out), folder=tmp_path
        )

    resumed = False
    with pytest.raises(KeyboardInterrupt):
        enhance()
    resumed = True
    result = enhance()
    assert seen == pytest.approx([240, 120, 60, 30], abs=2)  # each once, also the two that were finished before
    assert list(result.candidates) == ["unchanged", "x2", "x4", "x8", "continued"]
    assert "paired examples" in result.report.notes[0]
    assert any("train function" in note for note in result.report.notes)
    again = enhance()
    assert len(seen) == 4
    assert all(same(result.candidates[name], again.candidates[name]) for name in result.candidates)


class Sums(Dataset[dict[str, Tensor]]):
    """Inputs and targets by name: neither images nor classes."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.full((4,), index / 64)
        return {"x": x, "y": x.sum(0, keepdim=True)}


def test_any_batch_with_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(network(batch["x"]), batch["y"])

    result = known_core.enhance(model, Sums(), loss=loss, controls=(), recurrences=2, rate=0.6, select="x2.78")
    assert list(result.candidates) == ["unchanged", "x1.67", "x2.78"]
    assert result.selected == "x2.78"
    assert "Nothing was measured" in result.report.conclusion
    one = known_core.enhance(model, Sums(), loss=loss, controls=(), evaluate=lambda candidate: 0.5)
    assert "One figure for each candidate has no interval" in one.report.conclusion
    with pytest.raises(KnownError, match=r"a batch is a dict.*Give loss"):
        known_core.enhance(model, Sums())


def test_a_chain_for_the_paper_s_hyper_model(model: nn.Module, source: TensorDataset) -> None:
    result = known_core.enhance(model, source, hypermodel="known-paper", controls=(), recurrences=1)
    assert result.report["hypermodel"]["design"] == "chain"
    given = result.candidates["unchanged"]
    assert torch.equal(result.candidates["x2"]["1.weight"], given["1.weight"])  # the paper predicts no batch norm
    assert not torch.equal(result.candidates["x2"]["4.weight"], given["4.weight"])


def test_tied_weights_stay_tied(source: TensorDataset) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 5)
            self.decode.weight = self.encode.weight

        def forward(self, images: Tensor) -> Tensor:
            answer: Tensor = self.head(self.decode(torch.tanh(self.encode(images.flatten(1)))))
            return answer

    torch.manual_seed(0)
    state = known_core.enhance(Tied(), source, controls=()).candidates["x4"]
    assert torch.equal(state["encode.weight"], state["decode.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": ["mean"]}, "option_invalid"),
        ({"train": plain_training, "controls": ["swa"]}, "does not say how to"),
        ({"select": "x3"}, "candidate_unknown"),
        ({"labels": [1, 2]}, "2 labels for 240 examples"),
        ({"hypermodel": "known-v9"}, "hypermodel_unknown"),
        ({"learning_rate": 1e30}, "training_diverged"),
    ],
)
def test_what_cannot_be(model: nn.Module, source: TensorDataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KnownError, match=message):
        known_core.enhance(model, source, **options)


def test_data_that_cannot_be(model: nn.Module, source: TensorDataset) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(KnownError, match="Stream has no length"):
        known_core.enhance(model, Stream())
    with pytest.raises(KnownError, match="too few for 5 nested subsets"):
        known_core.enhance(model, Subset(source, range(8)))
    wrong = {"unchanged": 3}
    with pytest.raises(KnownError, match="evaluate gave 3 figures"):
        known_core.enhance(model, source, controls=(), evaluate=lambda candidate: [0.0] * wrong.pop("unchanged", 4))


def test_importing_the_library_loads_no_torch() -> None:
    code = "import known_core, sys; assert not {'torch', 'transformers', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
