"""The fused engine for CUDA: a block of weights goes through all of a hyper-model's layers in one kernel.

KNOWN's products run on tensor cores, each float32 product as three of TensorFloat-32 (``tf32x3``), which keeps
float32's accuracy. Biases are the weights of an input that is always one, so that a layer is one product.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from known_core.hypermodel import KnownNetwork
from known_core.kernels.eager import Eager
from known_core.kernels.packing import FoldedStream, fold, pack_fan
from known_core.scale_free import CoefficientNetwork

_BLOCK = 128  # weights a program
_WIDE = 16  # inputs after padding: the least a tensor-core product takes; the last one is always one
_FEATURES_PAD = 80  # 64 gated values and 16 squeezed ones


class Triton:
    """See :class:`~known_core.kernels.Engine`.

    Raises:
        ImportError: on a CPU, unless Triton's interpreter is on (TRITON_INTERPRET=1).
    """

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ImportError("Triton runs on CUDA devices; TRITON_INTERPRET=1 interprets it on a CPU")
        self.device = device

    @torch.inference_mode()
    def chain(self, network: nn.Module, states: Tensor, steps: int) -> Tensor:
        assert isinstance(network, KnownNetwork)
        count = states.shape[1]
        # newest first: row ``steps`` is Θ_0, predictions go before it
        history = torch.cat([states.new_empty(steps, count), states])
        parameters = _padded(network).to(states.device)
        with torch.cuda.device_of(states):  # Triton launches on the current device
            for row in range(steps - 1, -1, -1):
                _chain_step[(triton.cdiv(count, _BLOCK),)](
                    parameters, history[row + 1 :], history[row], count, history.stride(0), BLOCK=_BLOCK, num_warps=8
                )
        return history[:steps].flip(0)

    def products(self, states: Tensor) -> Tensor:
        return Eager(self.device).products(states)  # one product of the libraries' own

    @torch.inference_mode()
    def fan(self, network: nn.Module, states: Tensor, features: Tensor, unit: float, size: float) -> Tensor:
        assert isinstance(network, CoefficientNetwork)
        states = states.contiguous()
        count, steps = states.shape[1], len(features)
        predictions = states.new_empty(steps, count)
        parameters = pack_fan(network, features, unit, size).to(states.device)
        block = 1024
        with torch.cuda.device_of(states):
            _fan[(triton.cdiv(count, block),)](parameters, states, predictions, count, STEPS=steps, BLOCK=block)
        return predictions


def _padded(network: KnownNetwork) -> Tensor:
    """For each stream squeeze (16, 16), expand, exponent and multiplier (16, 64), features (80, 32) and the head's
    weights (32), then the head's bias. Matrices stand as (inputs, outputs). float32, on the CPU."""
    parts: list[Tensor] = []
    head = network.head.weight.detach().cpu().double()[0]
    for stream, weights in ((network.values, head[:32]), (network.differences, head[32:])):
        parts += [*_padded_stream(fold(stream)), weights]
    parts.append(network.head.bias.detach().cpu().double())
    return torch.cat([part.flatten() for part in parts]).float()


def _padded_stream(folded: FoldedStream) -> list[Tensor]:
    squeeze = _wide(folded.squeeze, 16)
    squeeze[-1, -1] = 1  # the one that is always one stays so
    features = torch.zeros(_FEATURES_PAD, 32, dtype=torch.float64)
    features[:64] = folded.features[:, :64].T
    features[64:72] = folded.features[:, 64:72].T
    features[-1] = folded.features[:, -1]
    return [
        squeeze, _wide(folded.expand, 64), _wide(folded.exponent, 64), _wide(folded.multiplier, 64),
        features[:64], features[64:],
    ]  # fmt: skip


def _wide(matrix: Tensor, outputs: int) -> Tensor:
    """(outputs, inputs + 1) with the bias last, to (16, outputs) with zeros between inputs and bias."""
    padded = torch.zeros(_WIDE, outputs, dtype=torch.float64)
    padded[: matrix.shape[1] - 1, : len(matrix)] = matrix[:, :-1].T
    padded[-1, : len(matrix)] = matrix[:, -1]
    return padded


@triton.jit
def _lower(values, bound):
    """NaN stays NaN, as in PyTorch's clamp: what overflowed inside is to be noticed outside."""
    return tl.minimum(values, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _higher(values, bound):
    return tl.maximum(values, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _matrix(pointer, rows: tl.constexpr, columns: tl.constexpr):
    return tl.load(pointer + tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :])


@triton.jit
def _stream(values, pointer):
    """(BLOCK, 16) inputs, the last one 1, to the stream's share of the head's sum, (BLOCK,)."""
    z = _higher(tl.dot(values, _matrix(pointer, 16, 16), input_precision="tf32x3"), 0.0)
    pointer += 256
    h = tl.dot(values, _matrix(pointer, 16, 64), input_precision="tf32x3")
    pointer += 1024
    exponent = tl.dot(z, _matrix(pointer, 16, 64), input_precision="tf32x3")
    pointer += 1024
    multiplier = tl.dot(z, _matrix(pointer, 16, 64), input_precision="tf32x3")
    pointer += 1024
    gated = multiplier * tl.exp(_lower(exponent * h, 60.0))
    features = tl.dot(gated, _matrix(pointer, 64, 32), input_precision="tf32x3")
    pointer += 2048
    features = tl.dot(z, _matrix(pointer, 16, 32), features, input_precision="tf32x3")
    pointer += 512
    features = tl.where(features > 0, features, 0.3 * features)
    return tl.sum(features * tl.load(pointer + tl.arange(0, 32))[None, :], axis=1)


@triton.jit
def _chain_step(parameters, states, prediction, count, stride, BLOCK: tl.constexpr):
    """One prediction: ``states`` begins with the newest state, 5 rows; ``prediction`` is the row before them."""
    stream: tl.constexpr = 256 + 3 * 1024 + 2048 + 512 + 32
    weight = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = weight < count
    column = tl.arange(0, 16)
    at = states + weight[:, None] + (4 - column)[None, :].to(tl.int64) * stride  # the most forgotten first
    values = tl.load(at, mask=inside[:, None] & (column < 5)[None, :], other=0.0)
    values = _lower(_higher(values, -1e6), 1e6)
    later = tl.load(at - stride, mask=inside[:, None] & (column < 4)[None, :], other=0.0)
    later = _lower(_higher(later, -1e6), 1e6)
    one = (column == 15)[None, :]
    differences = tl.where((column < 4)[None, :], later - values, 0.0)
    head = _stream(tl.where(one, 1.0, values), parameters) + _stream(
        tl.where(one, 1.0, differences), parameters + stream
    )
    head += tl.load(parameters + 2 * stream)
    # tanh with a small relative error near zero too, where residuals lie (Cephes' tanhf)
    size = tl.abs(head)
    square = head * head
    near = -5.70498872745e-3 * square + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    near = near * square * head + head
    far = 1.0 - 2.0 / (tl.exp(_lower(2.0 * size, 60.0)) + 1.0)
    residual = tl.where(size < 0.625, near, tl.where(head < 0, -far, far))
    newest = tl.load(states + weight, mask=inside, other=0.0)
    tl.store(prediction + weight, newest + residual, mask=inside)


@triton.jit
def _bounded(value, sign):
    return _lower(_higher(value * sign, -4.0), 4.0)


@triton.jit
def _fan(parameters, states, predictions, count, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """All steps of the scale-free design; parameters as :func:`~known_core.kernels.packing.pack_fan` lays them."""
    weight = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = weight < count
    per_unit, per_size, unit = tl.load(parameters), tl.load(parameters + 1), tl.load(parameters + 2)
    theta = tl.load(states + weight, mask=inside, other=0.0)
    i0 = (tl.load(states + weight + count, mask=inside, other=0.0) - theta) * per_unit
    i1 = (tl.load(states + weight + 2 * count, mask=inside, other=0.0) - theta) * per_unit
    i2 = (tl.load(states + weight + 3 * count, mask=inside, other=0.0) - theta) * per_unit
    i3 = (tl.load(states + weight + 4 * count, mask=inside, other=0.0) - theta) * per_unit
    i4 = theta * per_size
    sign = tl.where(i0 > 0, 1.0, tl.where(i0 < 0, -1.0, 0.0))
    s0, s1, s2, s3, s4 = (
        _bounded(i0, sign), _bounded(i1, sign), _bounded(i2, sign), _bounded(i3, sign), _bounded(i4, sign),
    )  # fmt: skip
    matrix = parameters + 3
    of_step = matrix + 80
    for step in tl.static_range(STEPS):
        rows = of_step + 16
        c0, c1, c2, c3, c4 = (
            tl.load(rows), tl.load(rows + 17), tl.load(rows + 34), tl.load(rows + 51), tl.load(rows + 68),
        )  # fmt: skip
        c0, c1, c2, c3, c4 = c0 + 0 * theta, c1 + 0 * theta, c2 + 0 * theta, c3 + 0 * theta, c4 + 0 * theta
        for row in range(16):
            w = matrix + 5 * row
            x = tl.load(of_step + row) + tl.load(w) * s0 + tl.load(w + 1) * s1 + tl.load(w + 2) * s2
            x += tl.load(w + 3) * s3 + tl.load(w + 4) * s4
            hidden = x / (1.0 + tl.exp(_lower(-x, 60.0)))
            at = rows + 1 + row
            c0 += tl.load(at) * hidden
            c1 += tl.load(at + 17) * hidden
            c2 += tl.load(at + 34) * hidden
            c3 += tl.load(at + 51) * hidden
            c4 += tl.load(at + 68) * hidden
        moved = c0 * i0 + c1 * i1 + c2 * i2 + c3 * i3 + c4 * i4
        tl.store(predictions + step * count + weight, theta + unit * moved, mask=inside)
        of_step = rows + 85
