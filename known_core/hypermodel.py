"""KNOWN, the hyper-model: five values of one weight in, the value one step back out.

Source: Jang, Kim, Kim, "Learning from Oblivion", CVPR 2026, arXiv 2508.05059, section 4. Three separate networks of
9,425 parameters each predict convolution kernels, matrices and biases.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from known_core.checkpoint.writer import save_tensors
from known_core.errors import KnownError
from known_core.forgetting import Design
from known_core.kernels import Engine
from known_core.kernels.eager import Eager
from known_core.kinds import Kind, kind_of

STATES = 5  # states a window holds
_EXPONENT_LIMIT = 60.0  # exp(60) is 1e26: far past the tanh's saturation, far below float32's overflow
_HISTORY_LIMIT = 1e6  # no weight is as large; beyond it float32 sums of opposite signs overflow to NaN


class HyperModel(Protocol):
    """What reads a trajectory and predicts what more data would have made of the weights."""

    design: Design  # the trajectory it reads
    states: int  # how many of its states

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        """As what a tensor is predicted, or None where it is carried over."""

    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> Tensor | None:
        """What has to be known of a whole tensor before a tile of it is predicted; None: nothing.

        Args:
            tiles: the tensor, tile by tile, as :meth:`predict` takes them; each iteration reads it again.
        """

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        """A tile of one tensor, ``steps`` times.

        Args:
            states: (S, n) float32, on any device: Θ_0 first, then those of ever less data.
            whole: what :meth:`survey` found of the tensor.
            rate: r of the trajectory.

        Returns:
            (steps, n) float32, on the same device or the engine's: for 1/r, 1/r², … times the data.
        """


class Stream(nn.Module):
    """One of KNOWN's two streams: ``width`` inputs to 32 features, through a gated exponential block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 64)
        self.squeeze = nn.Linear(64, 8)
        self.additive = nn.Linear(8, 64)
        self.multiplier = nn.Linear(8, 64)
        self.exponent = nn.Linear(8, 64)
        self.features = nn.Linear(64, 32)

    def forward(self, values: Tensor) -> Tensor:
        """Args: values: (N, width) float. Returns: (N, 32)."""
        h = self.expand(values)
        z = relu(self.squeeze(h))
        exponent = (self.exponent(z) * h).clamp(max=_EXPONENT_LIMIT)
        h = self.additive(z) + self.multiplier(z) * torch.exp(exponent)
        return leaky_relu(self.features(h), negative_slope=0.3)


class KnownNetwork(nn.Module):
    """The network for one kind of tensor: 9,425 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.values = Stream(STATES)
        self.differences = Stream(STATES - 1)
        self.head = nn.Linear(64, 1)

    def forward(self, history: Tensor) -> Tensor:
        """Args: history: (N, 5) float, most forgotten state first, Θ_0 last. Returns: (N,) residual in (-1, 1)."""
        history = history.clamp(-_HISTORY_LIMIT, _HISTORY_LIMIT)
        features = torch.cat([self.values(history), self.differences(history.diff(dim=1))], dim=1)
        return torch.tanh(self.head(features)).squeeze(1)


class KindNetworks(nn.Module):
    """A network for each kind of tensor, kept in one file: the base of every fitted hyper-model.

    ``metadata`` travels with the file: the name, how it was trained, and whatever its card needs. ``engine`` runs the
    networks; eager until another is chosen (:func:`known_core.kernels.choice.choose_engine`).
    """

    file_format: str  # written to the file, so that one design is not read as another
    network: Callable[[], nn.Module]
    engine: Engine

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({kind: type(self).network() for kind in get_args(Kind)})
        self.metadata = dict(metadata or {})
        self.engine = Eager()

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically; the same bytes each time."""
        save_tensors(path, self.state_dict(), {**self.metadata, "format": "pt", "known": self.file_format})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a hyper-model written by :meth:`save`.

        Raises:
            KnownError: ``hypermodel_invalid`` when the file is missing or is not a hyper-model of this design.
        """
        hint = "Give a .safetensors file written by `known metatrain fit`."
        if not path.is_file():
            raise KnownError("hypermodel_invalid", f"there is no hyper-model file at {path}", hint)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get("known") != cls.file_format:
                raise KnownError("hypermodel_invalid", f"{path} is safetensors, but not a {cls.__name__}", hint)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise KnownError("hypermodel_invalid", f"{path} holds NaN or infinite values", "Fit it again.")
            known = cls({key: value for key, value in metadata.items() if key not in ("format", "known")})
            known.load_state_dict(tensors)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise KnownError("hypermodel_invalid", f"{path} cannot be read as a hyper-model: {error}", hint) from error
        return known.eval()


class Known(KindNetworks):
    """The set {conv, fc, bias} of KNOWN networks."""

    design: Design = "chain"
    states = STATES
    file_format = "known-hypermodel-1"
    network = KnownNetwork

    def residual(self, kind: Kind, history: Tensor) -> Tensor:
        """How far one step back lies from Θ_0.

        Args:
            kind: "conv", "fc" or "bias".
            history: (N, 5) float32 on the hyper-model's device, ordered from the most forgotten state to Θ_0.

        Returns:
            (N,) float32; the prediction is ``history[:, -1] + residual``.

        Raises:
            KnownError: ``history_shape`` when history is not (N, 5).
        """
        if history.ndim != 2 or history.shape[1] != STATES:
            raise KnownError(
                "history_shape",
                f"history has shape {tuple(history.shape)}; KNOWN reads (N, {STATES})",
                f"Stack the {STATES} states of each weight along the last axis, most forgotten first.",
            )
        residual: Tensor = self.networks[kind](history)
        return residual

    def kind_of(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
        """:func:`known_core.kinds.kind_of`."""
        return kind_of(name, shapes, dtype)

    def survey(self, kind: Kind, tiles: Iterable[Tensor], rate: float, steps: int) -> None:
        """Nothing: each weight is predicted from its own states."""

    def predict(self, kind: Kind, states: Tensor, whole: Tensor | None, rate: float, steps: int) -> Tensor:
        """See :class:`HyperModel`. Each prediction enters the next window (paper, section 3.2), whatever the rate."""
        return self.engine.chain(self.networks[kind], states.to(self.engine.device), steps)

    @classmethod
    def from_keras(cls, paths: Mapping[Kind, Path]) -> "Known":
        """Import the authors' three .h5 files (needs the ``keras`` extra: h5py).

        Args:
            paths: the file for each of "conv", "fc" and "bias".

        Raises:
            KnownError: ``hypermodel_invalid`` when a kind is missing or a file has other layers.
        """
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise KnownError("extra_missing", "h5py is not installed", "pip install 'known[keras]'") from error
        if set(paths) != set(get_args(Kind)):
            raise KnownError(
                "hypermodel_invalid", f"paths has {sorted(paths)}", f"Give one file for each of {get_args(Kind)}."
            )
        known = cls({"name": "keras-import"})
        for kind, path in paths.items():
            network = known.networks[kind]
            assert isinstance(network, KnownNetwork)
            try:
                with h5py.File(path, "r") as file, torch.no_grad():
                    for index, layer in enumerate(_keras_order(network)):
                        name = "dense" if index == 0 else f"dense_{index}"
                        group = file[name][name]
                        layer.weight.copy_(torch.from_numpy(group["kernel:0"][()].T.copy()))
                        layer.bias.copy_(torch.from_numpy(group["bias:0"][()]))
            except (OSError, KeyError, RuntimeError) as error:
                raise KnownError(
                    "hypermodel_invalid", f"{path} is not one of the authors' KNOWN files: {error}",
                    "Give KNOWN_Conv.h5, KNOWN_FC.h5 and KNOWN_Bias.h5 as the authors released them.",
                ) from error  # fmt: skip
        return known.eval()


def _keras_order(network: KnownNetwork) -> list[nn.Linear]:
    """The layers in the order Keras numbered them: dense .. dense_12."""
    streams = (network.values, network.differences)
    return [
        layer
        for stream in streams
        for layer in (
            stream.expand, stream.squeeze, stream.additive, stream.multiplier, stream.exponent, stream.features,
        )
    ] + [network.head]  # fmt: skip
