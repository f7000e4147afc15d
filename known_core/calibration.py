"""Batch-normalisation statistics, re-estimated on D_0 after prediction (the paper never predicts them)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


@torch.no_grad()  # not inference mode: what items and networks keep in memory is trained with later
def recalibrate(model: nn.Module, batches: Iterable[Tensor | dict[str, Tensor]]) -> None:
    """Replace every running mean and variance by their averages over ``batches``, in place.

    Only the normalisation layers run in training mode, so dropout does not disturb the statistics.
    ``num_batches_tracked`` keeps its value. A batch smaller than the first is left out: every batch weighs the same,
    and one value a channel has no variance.

    Args:
        model: takes a batch as its first argument, or as named ones.
        batches: inputs on the model's device; those of D_0.
    """
    full = 0
    with _cumulative_statistics(model):
        for batch in batches:
            size = len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))
            full = full or size
            if size == full:
                model(batch) if isinstance(batch, Tensor) else model(**batch)


@contextmanager
def _cumulative_statistics(model: nn.Module) -> Iterator[None]:
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(layer.momentum, _count(layer).clone()) for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's name for a cumulative average
        layer.train()
    try:
        yield
    finally:
        model.eval()
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            _count(layer).copy_(count)


def _count(layer: _BatchNorm) -> Tensor:
    assert layer.num_batches_tracked is not None
    return layer.num_batches_tracked
