"""A torch module's weights to a checkpoint and back."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from known_core.checkpoint.reader import WEIGHTS, Checkpoint
from known_core.checkpoint.writer import save_tensors


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state dict, on the CPU, each with memory of its own."""
    state = module.state_dict()
    return {
        name: value.detach().cpu().contiguous().clone() for name, value in state.items() if isinstance(value, Tensor)
    }


def save_state(state: Mapping[str, Tensor], folder: Path) -> None:
    """One safetensors file in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, state, {"format": "pt"})


def read_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The whole checkpoint in memory, under its logical names."""
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors into a module, in place; what is no tensor of its state stays as it is."""
    module.load_state_dict({**module.state_dict(), **state})
