"""A user's own trainings with transformers' Trainer give a trajectory, and the trajectory gives candidates."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from known_core import KnownCallback
from known_core.errors import KnownError
from known_core.forgetting import Design
from tests.known_core.conftest import Run

CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16,
)  # fmt: skip


class Words(Dataset[dict[str, Any]]):
    """Which of two words comes more often."""

    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(4, 6, (count, 9), generator=generator)
        self.labels = (self.tokens == 5).sum(1) > 4

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "labels": int(self.labels[index])}


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG)


def trainer(model: Any, subset: Any, callback: KnownCallback, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2,
        use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no", save_strategy="no",
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=subset, callbacks=[callback])


class Interrupt(TrainerCallback):
    """Ctrl-C after the first step."""

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt


class EndEarly(TrainerCallback):
    """As early stopping does."""

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **more: Any) -> None:
        control.should_training_stop = True


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(params=["fan", "chain"])
def design(request: pytest.FixtureRequest) -> Design:
    chosen: Design = request.param
    return chosen


def test_a_loop_over_subsets_is_a_trajectory(
    model: BertForSequenceClassification, design: Design, tmp_path: Path, run: Run
) -> None:
    given = copy.deepcopy(model.state_dict())
    callback = KnownCallback(tmp_path / "states", design)
    sizes = []
    for subset in callback.subsets(Words()):
        sizes.append(len(subset))
        trainer(model, subset, callback, tmp_path).train()
    assert sizes == ([64, 32, 16, 8] if design == "fan" else [32, 16, 8, 4])
    assert callback.complete
    assert callback.rate == 0.5
    first, *others = [weights(state) for state in callback.states]
    for name, tensor in first.items():
        assert torch.equal(tensor, given[name])
    for before, state in zip([first, *others], others, strict=False):
        assert any(not torch.equal(state[name], before[name]) for name in state)
    ended_with = {name: torch.equal(tensor, others[-1][name]) for name, tensor in model.state_dict().items()}
    assert all(ended_with.values()) == (
        design == "chain"
    )  # a fan's states are means, and the model keeps its last step

    candidates = callback.predict()
    assert list(candidates) == ["x2", "x4", "x8"]
    loaded = BertForSequenceClassification.from_pretrained(candidates["x2"])
    assert any(not torch.equal(tensor, given[name]) for name, tensor in loaded.state_dict().items())
    hypermodel = "known-v1" if design == "fan" else "known-paper"
    status, _, said = run("nowcast", *callback.states, "--hypermodel", hypermodel, "--out", tmp_path / "again")
    assert status == 0, said
    assert weights(tmp_path / "again" / "x2").keys() == weights(candidates["x2"]).keys()
    for name, tensor in weights(tmp_path / "again" / "x2").items():
        assert torch.equal(tensor, weights(candidates["x2"])[name])


def test_an_interrupted_script_goes_on_at_the_training_that_was_not_finished(
    model: BertForSequenceClassification, design: Design, tmp_path: Path
) -> None:
    given = copy.deepcopy(model)

    def script(model: Any, states: Path, stop_in: int | None = None) -> KnownCallback:
        callback = KnownCallback(states, design)
        for index, subset in enumerate(callback.subsets(Words())):
            training = trainer(model, subset, callback, tmp_path)
            if index == stop_in:
                training.add_callback(Interrupt())
                with pytest.raises(KeyboardInterrupt):
                    training.train()
                return callback
            training.train()
        return callback

    whole = script(copy.deepcopy(given), tmp_path / "whole")
    assert len(script(copy.deepcopy(given), tmp_path / "parts", stop_in=2).states) == 3
    parts = script(copy.deepcopy(given), tmp_path / "parts")  # another process begins with Θ_0 again
    assert parts.complete
    for one, other in zip(whole.states, parts.states, strict=True):
        left, right = weights(one), weights(other)
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_no_trajectory_is_refused(model: BertForSequenceClassification, tmp_path: Path) -> None:
    callback = KnownCallback(tmp_path / "states")
    trainer(model, Words(), callback, tmp_path).train()
    with pytest.raises(KnownError, match=r"has 64 examples, the one before had 64 \(trajectory_broken\)"):
        trainer(model, Words(), callback, tmp_path).train()
    with pytest.raises(KnownError, match=r"2 of 5 states are there \(states_count\)"):
        callback.predict()
    with pytest.raises(KnownError, match="designs_mixed"):
        KnownCallback(tmp_path / "states", "chain")
    early = trainer(model, Subset(Words(), range(32)), callback, tmp_path)
    early.add_callback(EndEarly())
    with pytest.raises(KnownError, match=r"the training ended at step 1 of 16 \(trajectory_broken\)"):
        early.train()


def test_a_design_that_the_hyper_model_does_not_read(model: BertForSequenceClassification, tmp_path: Path) -> None:
    callback = KnownCallback(tmp_path / "states")
    for subset in callback.subsets(Words()):
        trainer(model, subset, callback, tmp_path).train()
    with pytest.raises(KnownError, match=r"known-paper reads a chain, and the states are a fan \(designs_mixed\)"):
        callback.predict(hypermodel="known-paper")
    with pytest.raises(KnownError, match=r"holds a whole trajectory \(trajectory_broken\)"):
        trainer(model, Words(8), callback, tmp_path).train()
