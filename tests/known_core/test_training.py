"""Fine-tuning: it learns, it repeats itself bit for bit, and it says when it diverges."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from known_core.errors import KnownError
from known_core.models.registered import SmallCNN
from known_core.training import fine_tune

CPU = torch.device("cpu")


class Blobs(Dataset[dict[str, Tensor]]):
    """Grey images, bright on the left or on the right."""

    def __init__(self, count: int = 64, size: int = 8, channels: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 2
        self.pixels = torch.randn(count, channels, size, size, generator=generator) * 0.3
        self.pixels[self.labels == 1, :, :, : size // 2] += 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class Broken(nn.Module):
    """A linear model whose loss, or whose gradient alone, is not a number after some steps."""

    def __init__(self, what: str, value: float, after: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.what, self.value, self.calls, self.after = what, value, 0, after

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        logits = self.layer(pixel_values.flatten(1))
        if self.calls > self.after and self.what == "gradient":
            logits.register_hook(lambda gradient: gradient * self.value)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.calls > self.after and self.what == "loss":
            loss = loss * self.value
        return {"loss": loss, "logits": logits}


def run(model: nn.Module, dataset: Dataset[Any] | None = None, **changes: Any) -> float:
    arguments: dict[str, Any] = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 16, "seed": 0, "device": CPU}
    return fine_tune(model, dataset or Blobs(), **(arguments | changes))


def network(seed: int = 0, **options: Any) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(2, 1, 8, width=4, **options)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def loss_of(model: nn.Module) -> float:
    data = Blobs()
    with torch.inference_mode():
        return float(model.eval()(data.pixels, data.labels)["loss"])


def test_it_reduces_the_loss() -> None:
    model = network()
    before = loss_of(model)
    mean = run(model, epochs=8)
    after = loss_of(model)
    assert after < 0.5 * before
    assert after < mean < 1.5 * before


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_same_seed_gives_the_same_bits(schedule: str) -> None:
    states = []
    for disturbance in (1, 2):
        model = network()
        torch.manual_seed(disturbance)  # what ran before must not matter
        run(model, schedule=schedule)
        states.append(state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_seed_another_order() -> None:
    models = [network(), network()]
    for seed, model in enumerate(models):
        run(model, seed=seed)
    assert not torch.equal(models[0].head.weight, models[1].head.weight)


def test_no_weight_decay() -> None:
    """A weight without gradient stays as it is."""
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    run(model)
    assert torch.equal(model.get_parameter("unused"), torch.ones(3))


@pytest.mark.parametrize(("epochs", "batch_size", "total"), [(2, 16, 8), (3, 20, 12), (1, 1000, 1)])
def test_steps_are_reported_to_the_last(epochs: int, batch_size: int, total: int) -> None:
    steps: list[tuple[int, int, float]] = []
    mean = run(network(), epochs=epochs, batch_size=batch_size, on_step=lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(step + 1, total) for step in range(total)]
    assert sum(loss for *_, loss in steps) / total == pytest.approx(mean)


def trained(share: float, **changes: Any) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A trained network, and its weights after each step."""
    model, weights = network(**changes), []
    run(model, average_last=share, on_step=lambda step, total, loss: weights.append(state(model)))
    return model, weights


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.3, 3), (1.0, 8), (0.01, 1)])
def test_weights_are_averaged_over_the_last_steps(share: float, count: int) -> None:
    model, weights = trained(share)
    assert len(weights) == 8
    for name, parameter in model.named_parameters():
        mean = torch.stack([step[name] for step in weights[-count:]]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)
    statistics = {name: buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")}
    assert statistics  # a mean of statistics would be those of no network: the caller re-estimates them
    assert all(torch.equal(buffer, weights[-1][name]) for name, buffer in statistics.items())


def test_no_share_leaves_the_last_step_s_weights() -> None:
    model, weights = trained(0.0)
    assert all(torch.equal(tensor, weights[-1][name]) for name, tensor in state(model).items())
    averaged, its = trained(0.5)
    for step, other in zip(weights, its, strict=True):  # averaging does not disturb the training
        assert all(torch.equal(tensor, other[name]) for name, tensor in step.items())
    assert not torch.equal(averaged.get_parameter("head.weight"), weights[-1]["head.weight"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_divergence(what: str, value: float) -> None:
    torch.manual_seed(0)
    with pytest.raises(KnownError, match=r"\(training_diverged\)") as caught:
        run(Broken(what, value, after=2), learning_rate=0.0625)
    assert "step 2 with learning rate 0.0625" in caught.value.message
    assert what in caught.value.message


def test_an_absurd_learning_rate_diverges() -> None:
    with pytest.raises(KnownError, match=r"1e\+30 \(training_diverged\)"):
        run(network(norm="none"), learning_rate=1e30, epochs=5)


def test_a_learning_rate_a_million_times_too_high() -> None:
    """AdamW moves each weight by it: what is left of the network is finite, or is said to have diverged."""
    model = network(norm="none")
    try:
        run(model, learning_rate=1e-3 * 1e6, epochs=5)
    except KnownError as error:
        assert error.code == "training_diverged"  # noqa: PT017
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize(("count", "batch_size"), [(33, 32), (4, 1)])
def test_a_last_batch_of_one_example_does_not_break_batch_norm(count: int, batch_size: int) -> None:
    """A ResNet's last stage is 1 x 1 on small images: batch norm cannot train on one value a channel."""
    torch.manual_seed(0)
    config: Any = transformers.AutoConfig.for_model(
        "resnet", num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    losses = run(
        transformers.ResNetForImageClassification(config), Blobs(count, size=8), epochs=1, batch_size=batch_size
    )
    assert losses > 0
