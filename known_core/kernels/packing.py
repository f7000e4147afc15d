"""What the fused engines read: parameters in their order, after the algebra that needs no weight.

The products between KNOWN's layers that have no activation between them fold into one.

With h = E v + e and z = relu(S h + s) of a stream (:class:`known_core.hypermodel.Stream`), its features are

    F (A z + a + (M z + m) * exp((X z + x) * h)) + f  =  (F A) z + F g + (F a + f)

so S folds into E, and the additive branch into the last layer: 14.6 kFLOP a weight instead of 20.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from known_core.hypermodel import KnownNetwork, Stream
from known_core.scale_free import CoefficientNetwork


class FoldedStream(NamedTuple):
    """One stream's layers after folding; every matrix has its bias as its last column. float64.

    Attributes:
        squeeze: (8, n + 1), values to z.
        expand: (64, n + 1), values to h.
        exponent: (64, 9), z to the factor of h in the exponent.
        multiplier: (64, 9), z to the factor of the exponential.
        features: (32, 73), the 64 gated values and the 8 of z to the features.
    """

    squeeze: Tensor
    expand: Tensor
    exponent: Tensor
    multiplier: Tensor
    features: Tensor


def fold(stream: Stream) -> FoldedStream:
    """The stream's layers, folded in float64."""
    expand, squeeze, additive, multiplier, exponent, features = (
        _with_bias(layer)
        for layer in (
            stream.expand, stream.squeeze, stream.additive, stream.multiplier, stream.exponent, stream.features,
        )
    )  # fmt: skip
    weight = features[:, :-1]
    return FoldedStream(
        squeeze=_compose(squeeze, expand),
        expand=expand,
        exponent=exponent,
        multiplier=multiplier,
        features=torch.cat([weight, _compose(features, additive)], dim=1),
    )


def pack_chain(network: KnownNetwork, rows: int) -> Tensor:
    """Every parameter in the order in which known.cpp reads them.

    The head's bias; then for each stream: the squeezed layer; for each of the 64 hidden units its rows of expand,
    exponent and multiplier; for each group of ``rows`` features their biases, their columns, and the head's weights.

    Args:
        rows: features that are summed side by side, ROWS in known.cpp.

    Returns:
        (P,) float32 on the CPU.
    """
    head = _with_bias(network.head)[0]
    parts = [head[-1:]]
    for stream, weights in ((network.values, head[:32]), (network.differences, head[32:64])):
        folded = fold(stream)
        parts += [folded.squeeze.flatten()]
        parts += [torch.cat([folded.expand, folded.exponent, folded.multiplier], dim=1).flatten()]
        for begin in range(0, len(weights), rows):
            group = folded.features[begin : begin + rows]
            parts += [group[:, -1], group[:, :-1].T.flatten(), weights[begin : begin + rows]]
    return torch.cat(parts).float().contiguous()


def pack_fan(network: CoefficientNetwork, features: Tensor, unit: float, size: float) -> Tensor:
    """The same for the scale-free design: what depends on the tensor alone is computed here.

    1/unit, 1/size and unit; ``weight`` (16, 5); then for each step the mix of its features (16), and for each of the 5
    coefficients that of the tensor (with the head's bias) and its row of the head (1 + 16).

    Args:
        features: (steps, STATISTICS) float32.

    Returns:
        (P,) float32 on the CPU.
    """
    head = network.head.weight.detach().cpu()
    parts = [torch.tensor([1 / unit, 1 / size, unit]), network.weight.weight.detach().cpu().flatten()]
    with torch.inference_mode():
        for of_step in features.to(network.head.weight.device):
            coefficients = (network.tensor(of_step) + network.head.bias).cpu()
            parts += [network.mix(of_step).cpu(), torch.cat([coefficients[:, None], head], dim=1).flatten()]
    return torch.cat(parts).contiguous()


def _with_bias(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().cpu().double()


def _compose(after: Tensor, before: Tensor) -> Tensor:
    """The affine map of ``before``, then ``after``; both with their bias as the last column."""
    composed = after[:, :-1] @ before
    composed[:, -1] += after[:, -1]
    return composed
