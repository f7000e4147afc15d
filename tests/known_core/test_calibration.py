"""Batch-norm statistics re-estimated from data, against direct computation."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from known_core.calibration import has_batch_norm, recalibrate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
    )  # fmt: skip
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 1, 8, 8))
    return model.eval()


BATCHES = [2 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) + 1 for seed in range(6)]


def test_statistics_are_the_mean_over_the_batches() -> None:
    model = network()
    first, second = model[1], model[5]
    assert isinstance(first, nn.BatchNorm2d)
    assert isinstance(second, nn.BatchNorm2d)
    with torch.no_grad():
        convolved = [model[0](batch) for batch in BATCHES]
        mean = torch.stack([part.mean((0, 2, 3)) for part in convolved]).mean(0)
        variance = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in convolved]).mean(0)
        normalised = [nn.functional.batch_norm(part, None, None, first.weight, first.bias, True) for part in convolved]
        # dropout off: the second layer sees the first one's own batch statistics
        later = [model[4](part.relu()) for part in normalised]
        second_mean = torch.stack([part.mean((0, 2, 3)) for part in later]).mean(0)
    recalibrate(model, BATCHES)
    assert first.running_mean is not None
    assert first.running_var is not None
    assert second.running_mean is not None
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, variance)
    torch.testing.assert_close(second.running_mean, second_mean)


def test_nothing_else_changes() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate(model, BATCHES)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name])
    assert before["1.num_batches_tracked"] == 5
    momenta = [layer.momentum for layer in model if isinstance(layer, nn.BatchNorm2d)]
    assert momenta == [0.3, 0.1]
    assert not any(module.training for module in model.modules())


def test_old_statistics_do_not_matter_and_it_repeats_itself() -> None:
    first, second = network(), network()
    with torch.no_grad():
        for name, buffer in second.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1e6)
    torch.manual_seed(5)
    recalibrate(first, BATCHES)
    torch.manual_seed(6)  # dropout, were it on, would differ
    recalibrate(second, BATCHES)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_a_failure_in_the_middle_restores_momentum_and_count() -> None:
    model = network()

    def broken() -> Iterator[Tensor]:
        yield BATCHES[0]
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        recalibrate(model, broken())
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.momentum == 0.3
    assert layer.num_batches_tracked == 5


def test_a_last_batch_of_one_value_a_channel_does_not_break_it() -> None:
    """D_0 of 33 examples in batches of 32, and a network whose last feature map is 1 x 1."""
    model = nn.Sequential(nn.Conv2d(1, 2, 8), nn.BatchNorm2d(2))
    recalibrate(model, [BATCHES[0], BATCHES[1][:1]])
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_var is not None
    assert torch.isfinite(layer.running_var).all()


def test_has_batch_norm() -> None:
    assert has_batch_norm(network())
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)))
    assert not has_batch_norm(nn.BatchNorm2d(2, track_running_stats=False))
    assert not has_batch_norm(nn.InstanceNorm2d(2))
