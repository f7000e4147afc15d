"""known-v1's design: a hyper-model that knows a tensor only by its own scale, and is fitted on fans.

KNOWN (paper, section 4) reads absolute weights, so what it learns is bound to the magnitudes of the networks it saw,
and its trajectory runs back in training time, when weights were smaller: it learns to shrink. Here the states are
displacements from Θ_0 that all began there (:mod:`known_core.forgetting`, "fan"), divided by the tensor's own step
size. A small network reads statistics of the whole tensor (how far and how much alike the displacements point; layer
statistics after NiNo, Knyazev et al., ICLR 2025) and gives the coefficients of a sum of the displacements and of the
weight itself. The sum is odd in its inputs, so a weight and its negative are treated alike; plain shrinkage, averaging
and extrapolation are special cases that it can choose.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from known_core.forgetting import Design
from known_core.hypermodel import STATES, KindNetworks
from known_core.kinds import Kind, kind_of_moving

STATISTICS = 14  # of a tensor, see :func:`statistics`
_TINY = 1e-12


def statistics(displacements: Tensor, theta: Tensor, rate: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is known of a whole tensor.

    Args:
        displacements: (S-1, n) float32, Φ_s - Θ_0, most data first.
        theta: (n,) float32, Θ_0.
        rate: r of the fan.
        step: 1 for 1/r times the data, 2 for 1/r², ….

    Returns:
        (STATISTICS,) float32: logarithms of the sizes of step and weight and of their ratios, cosines between the
        displacements and of the first with Θ_0, log of n, log2 of 1/r and of the multiple; then the root mean squares
        of the first displacement and of Θ_0, the units of the inputs.
    """
    rows = torch.cat([displacements, theta[None]]).double()
    return _from_products(rows @ rows.T, theta.numel(), rate, step)


def _from_products(products: Tensor, count: int, rate: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
    gram = products / count
    sizes = gram.diagonal().clamp(min=_TINY**2).sqrt()
    cosines = gram / sizes[:, None] / sizes[None, :]
    ratios = (sizes[1:-1] / sizes[0]).log()
    features = torch.cat([
        (sizes[0] / sizes[-1]).log()[None] / 5, ratios, cosines[0, 1:-1], cosines[1, 2:-1], cosines[2, 3:-1],
        cosines[0, -1:], torch.tensor([math.log(count) / 10, -math.log2(rate), -step * math.log2(rate)]),
    ])  # fmt: skip
    return features.float(), sizes[0].float(), sizes[-1].float()


class CoefficientNetwork(nn.Module):
    """The coefficients of one kind of tensor: from its statistics, and from each weight's own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = nn.Sequential(nn.Linear(STATISTICS, 32), nn.SiLU(), nn.Linear(32, STATES))
        self.mix = nn.Linear(STATISTICS, 16)
        self.weight = nn.Linear(STATES, 16, bias=False)
        self.head = nn.Linear(16, STATES)
        for layer in (self.tensor.get_submodule("2"), self.head):  # start as "predict Θ_0"
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, inputs: Tensor) -> Tensor:
        """Args: features: (..., STATISTICS). inputs: (..., n, STATES) scaled displacements, then the scaled weight.

        Returns:
            (..., n): the displacement predicted, in units of the first one's size.
        """
        sign = torch.sign(inputs[..., :1])
        size = (inputs * sign).clamp(-4, 4)  # even: the same for a weight and its negative
        hidden = torch.nn.functional.silu(self.weight(size) + self.mix(features).unsqueeze(-2))
        coefficients = self.tensor(features).unsqueeze(-2) + self.head(hidden)
        predicted: Tensor = (coefficients * inputs).sum(-1)
        return predicted


class ScaleFreeKnown(KindNetworks):
    """The set {conv, fc, bias} of coefficient networks; reads fans."""

    design: Design = "fan"
    states = STATES
    file_format = "known-scale-free-1"
    network = CoefficientNetwork

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        """:func:`known_core.kinds.kind_of_moving`: normalisation parameters and embeddings are predicted too."""
        return kind_of_moving(name, shapes, dtype)

    @torch.inference_mode()
    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> Tensor:
        """:func:`statistics`, of each step: (steps, STATISTICS + 2), the last two the units of the inputs."""
        products, count = torch.zeros(STATES, STATES, dtype=torch.float64), 0
        for tile in tiles:
            products += self.engine.products(tile.to(self.engine.device))
            count += tile.shape[1]
        found = [_from_products(products, count, rate, step) for step in range(1, steps + 1)]
        return torch.stack([torch.cat([features, unit[None], size[None]]) for features, unit, size in found])

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        """See :class:`~known_core.hypermodel.HyperModel`. Each step is predicted from the states, none from another."""
        assert whole is not None
        unit, size = float(whole[0, -2]), max(float(whole[0, -1]), _TINY)
        if unit <= _TINY:
            return states[:1].expand(steps, -1)  # nothing moved
        return self.engine.fan(self.networks[kind], states.to(self.engine.device), whole[:, :-2], unit, size)


def scaled(displacements: Tensor, theta: Tensor, unit: Tensor, size: Tensor) -> Tensor:
    """(S-1, n) displacements and (n,) weights in units of the tensor's step and size: (n, S)."""
    return torch.cat([displacements / unit, (theta / size.clamp(min=_TINY))[None]]).T
