"""A network spread over the processes of a team (FSDP2), read from a checkpoint and written to one row by row.

No process ever holds the whole network: each reads the rows that are its own, and writes them into one file that all
share, in the layout that :class:`~known_core.checkpoint.Checkpoint` and the streamed nowcast read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.dtypes import DTYPE_NAMES, all_finite
from known_core.checkpoint.layout import packed_header
from known_core.checkpoint.reader import WEIGHTS
from known_core.checkpoint.writer import SharedWriter, reserve
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.team import Rank


def check_shardable(network: Network, checkpoint: Checkpoint) -> None:
    """Raises: KnownError ``sharding_unsupported`` where FSDP2 cannot spread the network, or a name has no home."""
    if network.library == "peft":
        raise unsupported("LoRA adapters are trained whole: their base model is not spread")
    model = _skeleton(network)
    stored = _stored_names(model, checkpoint)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise unsupported(f"{name} is a single number, which has no rows to spread")
    for name in model.state_dict():
        if name not in stored:
            raise unsupported(f"{name} is not a tensor of the checkpoint")


@dataclass(frozen=True)
class NewHead:
    """A head for other labels: normal weights, as large as the config says for new ones (else 0.02), biases of zero."""

    num_labels: int
    seed: int


def load_sharded(network: Network, checkpoint: Checkpoint, rank: Rank, head: NewHead | None = None) -> nn.Module:
    """The network with the checkpoint's weights, float32, each process's rows on its device.

    Every process of the team calls it.

    Args:
        head: in the place of the checkpoint's own.

    Raises:
        KnownError: ``sharding_unsupported``.
    """
    check_shardable(network, checkpoint)
    model = _skeleton(network, head.num_labels if head else None)
    fresh = _fresh(network, model, head) if head else {}
    mesh = init_device_mesh(rank.device.type, (rank.count,))
    for module in _blocks(model):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    stored = _stored_names(model, checkpoint)
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        part = _Part.of(tensor, rank)
        if name in fresh:
            values = fresh[name].reshape(-1)[part.begin : part.end].clone()
        else:
            values = checkpoint.read_part(stored[name], part.begin, part.end)
        tensors[name] = part.placed(values.to(rank.device, tensor.dtype), tensor)
    model.load_state_dict(tensors, assign=True)
    _tie(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(rank.device)
    return model.eval()


def save_sharded(model: nn.Module, folder: Path, original: Checkpoint, rank: Rank) -> None:
    """Write the model's state as model.safetensors, under exactly the names of its checkpoint, every process its rows.

    Every process of the team calls it; the file is whole when it returns.

    Args:
        folder: seen by all of them; not there yet.
        original: what the model was loaded from; tensors that the model has not are carried over.

    Raises:
        KnownError: ``nonfinite_weights``.
    """
    names = {stored: name for name, stored in _stored_names(model, original).items()}
    state = model.state_dict()
    stored_as = {
        stored: DTYPE_NAMES[state[names[stored]].dtype] if stored in names else info.dtype
        for stored, info in original.tensors.items()
    }
    header = packed_header({stored: (dtype, original.shapes[stored]) for stored, dtype in stored_as.items()})
    if rank.leads:
        folder.mkdir(parents=True, exist_ok=True)
        reserve(folder / WEIGHTS, header)
    dist.barrier()
    with SharedWriter(folder / WEIGHTS, header) as writer:
        for stored in header.tensors:
            for offset, values in _rows(state[names[stored]] if stored in names else None, original, stored, rank):
                if not all_finite(values):
                    raise KnownError(
                        "nonfinite_weights", f"{stored!r} is not finite after a training", "Lower the learning rate."
                    )
                writer.write_part(stored, offset, values)
    dist.barrier()


def _rows(tensor: Tensor | None, original: Checkpoint, stored: str, rank: Rank) -> Iterator[tuple[int, Tensor]]:
    """What this process writes of a tensor: where it begins, and (n,) values on the CPU."""
    if isinstance(tensor, DTensor):
        part = _Part.of(tensor, rank)
        if part.end > part.begin:
            yield part.begin, tensor.to_local().detach().reshape(-1).cpu()
    elif rank.leads:
        values = original.read(stored) if tensor is None else tensor.detach().cpu()
        yield 0, values.reshape(-1)


@dataclass(frozen=True)
class _Part:
    """A process's elements of a tensor in row-major order; of one that is not spread, all."""

    begin: int
    end: int

    @classmethod
    def of(cls, tensor: Tensor, rank: Rank) -> "_Part":
        if not isinstance(tensor, DTensor):
            return cls(0, tensor.numel())
        rows = -(-tensor.shape[0] // rank.count)  # as torch.chunk: the last ones have fewer, or none
        each = tensor.numel() // tensor.shape[0]
        begin = min(rank.index * rows, tensor.shape[0])
        return cls(begin * each, (begin + tensor.to_local().shape[0]) * each)

    def placed(self, values: Tensor, like: Tensor) -> Tensor:
        """The values as a tensor that is spread, or not, as ``like`` is."""
        if not isinstance(like, DTensor):
            return values.reshape(like.shape)
        local = values.reshape(like.to_local().shape)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )


def _fresh(network: Network, model: nn.Module, head: NewHead) -> dict[str, Tensor]:
    """The tensors of a new head by the model's names: those whose shape depends on the number of labels."""
    others = {name: tensor.shape for name, tensor in _skeleton(network, head.num_labels + 1).state_dict().items()}
    size = float(getattr(network.parsed, "initializer_range", None) or 0.02)
    generator = torch.Generator().manual_seed(head.seed)
    return {
        name: torch.randn(tensor.shape, generator=generator) * (0.0 if tensor.ndim == 1 else size)
        for name, tensor in model.state_dict().items()
        if others.get(name) != tensor.shape
    }


def _skeleton(network: Network, num_labels: int | None = None) -> nn.Module:
    """The network, its parameters without data."""
    with init_empty_weights(include_buffers=False):
        model = network.skeleton(num_labels)
    _tie(model)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered at once, beside the rest: transformers' layers; a network that names none is gathered whole."""
    named = set(getattr(model, "_no_split_modules", None) or ())
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        module
        for module in model.modules()
        if type(module).__name__ in named and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    ]


def _tie(model: nn.Module) -> None:
    """What a network holds twice is one tensor again."""
    tie: Callable[[], None] | None = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def _stored_names(model: nn.Module, checkpoint: Checkpoint) -> Mapping[str, str]:
    """By the model's name of each tensor, the checkpoint's: the same, with or without the library's wrapping; of
    tensors that are one, the name that is stored."""
    base = getattr(model, "base_model_prefix", "") or "network"
    found: dict[str, str] = {}
    stored_as: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        for candidate in (name, name.removeprefix(f"{base}."), f"{base}.{name}"):
            info = checkpoint.tensors.get(candidate)
            if info is not None and info.shape == tuple(tensor.shape):
                found[name] = stored_as[id(tensor)] = candidate
                break
    return found | {name: stored_as[id(tensor)] for name, tensor in state.items()
                    if name not in found and id(tensor) in stored_as}  # fmt: skip


def unsupported(why: str) -> KnownError:
    """The error of a network that FSDP2 cannot train."""
    return KnownError(
        "sharding_unsupported", f"this network cannot be spread over GPUs: {why}",
        "Run it on a GPU that holds it whole (KNOWN_TEAM_SHARDING=ddp), or give a LoRA adapter of it.",
    )  # fmt: skip
