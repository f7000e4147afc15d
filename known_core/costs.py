"""What a network's passes ask of a device, counted on tensors without data: nothing is computed or allocated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

KINDS = (
    "calls", "convolutions", "matmul", "batched", "convolution", "narrow", "depthwise", "cached", "streamed",
)  # fmt: skip
"""What is counted: operators, and those of them that are convolutions; FLOPs of matrix products, of those in batches
(attention), of convolutions of many, few (under 16) and single channels a group; bytes that all other operators touch,
up to :data:`CACHED` and above."""
CACHED = 1 << 21  # bytes
FITS = 0.8  # of a GPU's memory may a training hold (:func:`training_bytes`) before its batch comes to it
_FREE = frozenset({  # they make another view of the same bytes, or look at nothing but shapes
    "view", "_unsafe_view", "_reshape_alias", "as_strided", "expand", "permute", "transpose", "t", "unsqueeze",
    "squeeze", "slice", "select", "detach", "alias", "split", "unbind", "chunk", "diagonal", "unfold",
    "split_with_sizes", "sym_size", "sym_numel", "is_same_size", "lift_fresh", "empty", "empty_like", "new_empty",
    "empty_strided",
})  # fmt: skip
_SMALL, _LARGE = 2, 4  # examples of the two passes from which one of any size is told
_REAL_PARAMETERS = 20_000_000  # networks up to here, on inputs up to there, are run on zeros: ten times as quick as
_REAL_INPUTS = 1_000_000  # working shapes out alone, and open to networks that look at values


@dataclass(frozen=True)
class Operator:
    """One call: its kind, and its FLOPs or bytes as ``fixed + examples * each``."""

    kind: str
    fixed: float
    each: float


@dataclass(frozen=True)
class Costs:
    """One pass forward and one back of a network.

    Args:
        forward, backward: their operators.
        saved: bytes that the pass forward keeps for the one back, of an example.
        parameters, tensors: of the network; ``trained`` and ``trained_tensors`` are those with a gradient.
    """

    forward: list[Operator]
    backward: list[Operator]
    saved: float
    parameters: int
    tensors: int
    trained: int
    trained_tensors: int

    def work(self, examples: int, *, training: bool) -> NDArray[np.float64]:
        """(KINDS,): what a batch asks for."""
        total = np.zeros(len(KINDS))
        for operator in (*self.forward, *self.backward) if training else self.forward:
            amount = operator.fixed + examples * operator.each
            kind = operator.kind
            if kind == "bytes":
                kind = "cached" if amount <= CACHED else "streamed"
            total[0] += 1
            total[1] += kind in ("convolution", "narrow", "depthwise")
            total[KINDS.index(kind)] += amount
        return total


def training_bytes(parameters: int, trained: int) -> int:
    """What one training holds of a network, in float32, whatever the batch: its weights, and of those that are trained
    gradients, AdamW's two means, and the running mean."""
    return 4 * (parameters + 4 * trained)


class Uncountable(Exception):
    """The network fails without values, and is too large to be given any."""


def count(network: nn.Module, batch: Mapping[str, Tensor]) -> Costs:
    """Count a network's passes.

    Args:
        network: on the meta device, or on the CPU; its forward takes the names in ``batch``, ``labels`` among them.
        batch: tensors of at least one example.

    Raises:
        Uncountable
    """
    parameters = list(network.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    device = parameters[0].device.type
    if (
        device == "meta"
        and total <= _REAL_PARAMETERS
        and _LARGE * sum(value[0].numel() for value in batch.values()) <= _REAL_INPUTS
    ):
        device = "cpu"
        network.to_empty(device=device)
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.zero_()
    try:
        small, saved_small = _pass(network, _resized(batch, _SMALL, device))
        large, saved_large = _pass(network, _resized(batch, _LARGE, device))
    except Exception as error:  # what a network does with values that are not there depends on the network
        raise Uncountable(f"{type(error).__name__}: {error}") from error
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Costs(
        _lines(small[0], large[0]),
        _lines(small[1], large[1]),
        max(0.0, (saved_large - saved_small) / (_LARGE - _SMALL)),
        total, len(parameters), sum(p.numel() for p in trained), len(trained),
    )  # fmt: skip


def _lines(small: list[tuple[str, float]], large: list[tuple[str, float]]) -> list[Operator]:
    if [kind for kind, _ in small] != [kind for kind, _ in large]:  # it does other things with larger batches
        return [Operator(kind, 0.0, amount / _LARGE) for kind, amount in large]
    lines = []
    for (kind, low), (_, high) in zip(small, large, strict=True):
        each = max(0.0, (high - low) / (_LARGE - _SMALL))
        lines.append(Operator(kind, max(0.0, low - _SMALL * each), each))
    return lines


def _resized(batch: Mapping[str, Tensor], size: int, device: str) -> dict[str, Tensor]:
    if device != "meta":
        return {name: torch.cat([value] * (-(-size // len(value))))[:size] for name, value in batch.items()}
    # A mask of tokens is looked at to find out whether it masks anything; without one nothing is masked.
    return {
        name: torch.empty(size, *value.shape[1:], dtype=value.dtype, device=device)
        for name, value in batch.items()
        if name != "attention_mask"
    }


def _pass(
    network: nn.Module, batch: dict[str, Tensor]
) -> tuple[tuple[list[tuple[str, float]], list[tuple[str, float]]], int]:
    """The operators forward and back, and the bytes kept in between."""
    network.train()
    network.zero_grad()
    kept: dict[int, int] = {}
    weights = {parameter._cdata for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor._cdata not in weights:
            kept[tensor._cdata if tensor.device.type == "meta" else tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Counter() as forward:
        loss = network(**batch)["loss"]
    with _Counter() as backward:
        loss.backward()
    network.zero_grad()
    return (forward.seen, backward.seen), sum(kept.values())


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if name in _FREE:
            return out
        if "scaled_dot_product" in name:
            self.seen.append(("batched", _attention_flops(name, args)))
        elif packet in flop_registry:
            flops = float(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
            self.seen.append((_kind(name, args), flops))
        else:
            self.seen.append(("bytes", float(sum(tensor.nbytes for tensor in _tensors((args, out))))))
        return out


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _attention_flops(name: str, args: Any) -> float:
    """Two products of (queries, keys) each way; backward has five, and begins with the gradient."""
    tensors = [value for value in args if isinstance(value, Tensor) and value.ndim == 4]
    query, key = tensors[1:3] if "backward" in name else tensors[:2]
    return float((10 if "backward" in name else 4) * query.numel() * key.shape[-2])


def _kind(name: str, args: Any) -> str:
    if "convolution" in name:
        weight = args[2] if "backward" in name else args[1]
        if weight.shape[1] == 1 < weight.shape[0]:
            return "depthwise"
        return "narrow" if min(weight.shape[:2]) < 16 else "convolution"
    return "batched" if name in ("bmm", "baddbmm") else "matmul"
