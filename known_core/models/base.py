"""What a family of networks gives a task, and what all families need."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.reader import WEIGHTS
from known_core.errors import KnownError
from known_core.files import atomic_path

Shapes = Mapping[str, tuple[int, ...]]
Library = Literal["registered", "timm", "torchvision", "transformers", "peft"]
_MAX_NETWORK_TENSORS = 10_000  # parameters and buffers; 1,200 in the largest default of transformers
_MAX_NETWORK_ELEMENTS = 1 << 34  # of these; 64 GiB in float32


class Network(Protocol):
    """An architecture read from a config, its weights apart.

    ``num_labels`` and ``label_names`` are those of the checkpoint's head; ``label_names`` is None where its labels have
    no names, and ``num_labels`` 0 where it has no head for labels. ``parsed`` is transformers' own config, None where
    the network is of another library.
    """

    library: Library
    architecture: str
    config: dict[str, Any]
    parsed: Any
    num_labels: int
    label_names: list[str] | None

    def check(self, shapes: Shapes) -> None:
        """Check a checkpoint's names and shapes against the network's, before memory is allocated for its weights.

        Raises:
            KnownError: ``tensors_mismatch``, ``config_invalid``, ``model_too_large``.
        """

    def skeleton(self, num_labels: int | None = None) -> nn.Module:
        """The network with any weights, on torch's default device: for what it costs.

        Args:
            num_labels: of its head; None: the checkpoint's.
        """

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The network with the checkpoint's weights, float32, on the CPU.

        Its forward takes named inputs and ``labels``, and returns a mapping with ``logits`` and, with labels, ``loss``.
        """

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        """The same with a freshly initialised head."""

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        """Write the model's state as model.safetensors, float32, under exactly the names of its checkpoint."""


class LabelsOnTop(nn.Module):
    """A network of images to logits, called as transformers calls its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Args: pixel_values: (N, C, H, W). labels: (N,) int64. Returns: logits (N, classes), and loss with labels."""
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class StateDictNetwork:
    """A network whose checkpoint is its plain state dict, as timm's and torchvision's are.

    Args:
        build: makes the network for a number of labels, with random weights; from images to logits.
    """

    library: Library
    architecture: str
    parsed = None

    def __init__(
        self, config: dict[str, Any], build: Callable[[int], nn.Module], num_labels: int, label_names: list[str] | None
    ) -> None:
        self.config, self.num_labels, self.label_names = config, num_labels, label_names
        self._build = build
        shapes, others = (_shapes(build, count) for count in (num_labels, num_labels + 1))
        self._expected = shapes
        self._head = {name for name, shape in shapes.items() if others.get(name) != shape}

    def check(self, shapes: Shapes) -> None:
        raise_mismatch(differences(self._expected, shapes))

    def skeleton(self, num_labels: int | None = None) -> nn.Module:
        return self._with_labels(self._build(num_labels or self.num_labels))

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        network = self._build(self.num_labels)
        network.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors})
        return self._with_labels(network)

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = self._build(num_labels)
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors if name not in self._head}
        network.load_state_dict({**tensors, **{name: network.state_dict()[name] for name in self._head}})
        return self._with_labels(network)

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        save_state(
            model.network.state_dict() if isinstance(model, LabelsOnTop) else model.state_dict(), folder, original
        )

    def _with_labels(self, network: nn.Module) -> nn.Module:
        return LabelsOnTop(network)


def names_of_labels(names: Any, num_labels: int, field: str) -> list[str] | None:
    """Label names as a config gives them: a list, or a mapping of every index.

    Raises:
        KnownError: ``config_invalid``.
    """
    if isinstance(names, dict) and names.keys() == {str(index) for index in range(num_labels)}:
        names = [names[str(index)] for index in range(num_labels)]
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_labels or not all(isinstance(name, str) for name in names):
        raise KnownError(
            "config_invalid",
            f"{field} is {str(names)[:80]!r}; the network has {num_labels} outputs",
            f"Give a list of {num_labels} strings, or drop it.",
        )
    return names


def _shapes(build: Callable[[int], nn.Module], num_labels: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), bounded_construction():
        return {name: tuple(tensor.shape) for name, tensor in build(num_labels).state_dict().items()}


def save_state(state: Mapping[str, Tensor], folder: Path, original: Checkpoint) -> None:
    """Write the tensors that the original checkpoint has, from ``state`` or, where it lacks one, as they were."""
    tensors = {name: state[name] if name in state else original.read(name) for name in original.tensors}
    with atomic_path(folder / WEIGHTS) as temporary:
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata={"format": "pt"})


def differences(expected: Shapes, shapes: Shapes) -> list[str]:
    """What a checkpoint's tensors lack, have too much, or have in another shape than the config's network."""
    return [
        *(f"missing {name}" for name in expected.keys() - shapes.keys()),
        *(f"unexpected {name}" for name in shapes.keys() - expected.keys()),
        *(
            f"{name} is {list(shapes[name])}, the config asks for {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ),
    ]


def raise_mismatch(problems: list[str], pointer: str = "/model") -> None:
    """Raises: KnownError ``tensors_mismatch`` with every problem, if there is any."""
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise KnownError(
            "tensors_mismatch",
            f"the weights are not those of the config's network: {'; '.join(sorted(problems)[:20])}{more}",
            "Give the config.json that was saved with these weights.",
        ).at(pointer)


@contextmanager
def library_on(library: str, file: str, code: str) -> Iterator[None]:
    """Turn whatever a library raises over a stranger's file into one KnownError.

    The one place that catches every Exception: what a constructor raises depends on the value it stumbles over, such
    as KeyError for an activation, ZeroDivisionError for a head count or StrictDataclassError for a type.
    """
    try:
        yield
    except KnownError:
        raise
    except Exception as error:
        raise KnownError(
            code,
            f"{library} cannot use {file}: {type(error).__name__}: {str(error)[:300]}",
            "Correct the value it names, or write the file again with the library that made it.",
        ) from error


@contextmanager
def bounded_construction() -> Iterator[None]:
    """Stop a network while it is built, once it has too many tensors or elements.

    They are counted as modules register them: no rule about config fields covers every architecture, and a million
    layers take minutes to build even on the meta device, without memory.

    Raises:
        KnownError: ``model_too_large``.
    """
    tensors = elements = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, elements
        if tensor is not None:
            tensors, elements = tensors + 1, elements + tensor.numel()
            if tensors > _MAX_NETWORK_TENSORS or elements > _MAX_NETWORK_ELEMENTS:
                raise KnownError(
                    "model_too_large",
                    f"the config's network has at least {tensors} tensors with {elements} elements; the limits are "
                    f"{_MAX_NETWORK_TENSORS} and {_MAX_NETWORK_ELEMENTS}",
                    "Correct the sizes and the number of layers in config.json.",
                )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
