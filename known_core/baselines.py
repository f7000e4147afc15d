"""What KNOW prediction is compared with: methods that read or change weights without a fitted hyper-model.

Every method takes and gives state dicts. Those that extrapolate or shrink change the tensors that the paper's KNOWN
predicts (:func:`known_core.kinds.kind_of`); means and matched shrinkage change everything that training moves
(:func:`known_core.kinds.kind_of_moving`). All others are carried over from Θ_0. States are ordered Θ_0 first, the most
forgotten last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from known_core.forgetting import Design
from known_core.hypermodel import STATES, HyperModel
from known_core.kinds import DTYPE_NAMES, Kind, kind_of, kind_of_moving

State = Mapping[str, Tensor]
KindOf = Callable[[str, Mapping[str, tuple[int, ...]], str], Kind | None]
_TINY = 1e-30


def kinds_of(state: State, kind_of: KindOf = kind_of) -> dict[str, Kind]:
    """The tensors that are changed, with their kind."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    kinds = {name: kind_of(name, shapes, DTYPE_NAMES.get(state[name].dtype, "other")) for name in shapes}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def change(theta: State, new: Callable[[str, Tensor], Tensor], kind_of: KindOf = kind_of) -> dict[str, Tensor]:
    """Θ_0 with each tensor that has a kind replaced by ``new(name, tensor)``, in the tensor's own dtype."""
    kinds = kinds_of(theta, kind_of)
    return {
        name: new(name, tensor).to(tensor.dtype) if name in kinds else tensor.clone() for name, tensor in theta.items()
    }


def shrink(theta: State, factor: float) -> dict[str, Tensor]:
    """Every kernel and matrix times ``factor``; biases stay."""
    kinds = kinds_of(theta)
    return change(theta, lambda name, tensor: tensor if kinds[name] == "bias" else factor * tensor)


def matched_shrink(theta: State, candidate: State) -> dict[str, Tensor]:
    """Θ_0 scaled, tensor by tensor, to the norm of ``candidate``: what of a prediction is a change of size alone."""

    return change(theta, lambda name, tensor: _to_norm(tensor, candidate[name]), kind_of_moving)


def _to_norm(tensor: Tensor, candidate: Tensor) -> Tensor:
    scaled: Tensor = tensor * (candidate.norm() / tensor.norm().clamp(min=_TINY))
    return scaled


def shrink_and_perturb(theta: State, factor: float, noise: float, seed: int) -> dict[str, Tensor]:
    """Shrink and add noise (Ash and Adams, NeurIPS 2020).

    Args:
        noise: standard deviation of the noise as a share of each tensor's own.
    """
    generator = torch.Generator().manual_seed(seed)

    def new(name: str, tensor: Tensor) -> Tensor:
        deviation = tensor.std() if tensor.numel() > 1 else tensor.abs().max()
        return factor * tensor + noise * deviation * torch.randn(tensor.shape, generator=generator)

    return change(theta, new)


def linear_fit(states: Sequence[State], step: float) -> dict[str, Tensor]:
    """Least-squares line through the states against their index, read ``step`` before Θ_0 from Θ_0 on."""
    return _fit(states, torch.arange(len(states), 0, -1, dtype=torch.float32), len(states) + step)


def log_fit(states: Sequence[State], step: float) -> dict[str, Tensor]:
    """The same against the logarithm of the index (LogFit in the paper's Table 1)."""
    index = torch.arange(len(states), 0, -1, dtype=torch.float32).log()
    return _fit(states, index, float(torch.tensor(len(states) + step).log()))


def _fit(states: Sequence[State], index: Tensor, target: float) -> dict[str, Tensor]:
    """Θ_0 plus the fitted slope times the way from Θ_0's index to the target's."""
    centred = index - index.mean()
    weights = centred / (centred**2).sum() * (target - float(index[0]))
    return change(
        states[0],
        lambda name, tensor: tensor + sum((float(w) * s[name] for w, s in zip(weights, states, strict=True)), 0.0),
    )


def task_vector(theta: State, forgotten: State, scale: float) -> dict[str, Tensor]:
    """Negate what forgetting did: Θ_0 - scale (Θ_S - Θ_0) (Ilharco et al., ICLR 2023)."""
    return change(theta, lambda name, tensor: tensor - scale * (forgotten[name] - tensor))


def singular_task_vector(theta: State, forgotten: State, scale: float, share: float) -> dict[str, Tensor]:
    """The task vector with each matrix cut to its largest singular directions (Gargiulo et al., CVPR 2025).

    Args:
        share: of the singular directions kept. Kernels are read as (out, in x height x width); biases stay whole.
    """

    def new(name: str, tensor: Tensor) -> Tensor:
        vector = forgotten[name] - tensor
        if vector.ndim > 1:
            u, s, v = torch.linalg.svd(vector.flatten(1), full_matrices=False)
            rank = max(1, round(share * len(s)))
            vector = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(tensor.shape)
        return tensor - scale * vector

    return change(theta, new)


def mean(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of the states (model soup, Wortsman et al., ICML 2022)."""

    def new(name: str, tensor: Tensor) -> Tensor:
        return torch.stack([state[name].float() for state in states]).mean(0)

    return change(states[0], new, kind_of_moving)


class Continued:
    """What training on all of D_0 made of Θ_0: the second state as it is. What is gained here needs no prediction."""

    design: Design = "fan"
    states = 2

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        return kind_of_moving(name, shapes, dtype)

    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> None:
        return None

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        return states[1:].expand(steps, -1)


class Mean:
    """The mean of all states of either trajectory."""

    states = STATES

    def __init__(self, design: Design) -> None:
        self.design = design

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        return kind_of_moving(name, shapes, dtype)

    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> None:
        return None

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        return states.mean(0, keepdim=True).expand(steps, -1)


class MatchedShrink:
    """Θ_0 scaled, tensor by tensor, to the norm of a hyper-model's prediction ``last`` steps back."""

    states = STATES

    def __init__(self, known: HyperModel, last: int) -> None:
        self._known, self._last, self.design = known, last, known.design

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        return self._known.kind_of(name, shapes, dtype)

    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> Tensor:
        """The factor, of shape ()."""
        whole = self._known.survey(kind, tiles, rate, self._last)
        squares = torch.zeros(2, dtype=torch.float64)  # of the prediction, of Θ_0
        for tile in tiles:
            last = self._known.predict(kind, tile, whole, rate, self._last)[-1]
            squares += torch.tensor([float(row.double().square().sum()) for row in (last, tile[0])])
        return (squares[0] / squares[1].clamp(min=_TINY**2)).sqrt()

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        assert whole is not None
        return (states[:1] * float(whole)).expand(steps, -1)
