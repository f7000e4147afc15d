"""Small registered architectures, for plain state dicts: a config.json names one and its arguments.

{"architecture": "small-cnn", "num_classes": 10, "in_chans": 1, "img_size": 28}
"""

import inspect
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from known_core.errors import KnownError
from known_core.models.base import Library, StateDictNetwork, names_of_labels


class SmallCNN(nn.Module):
    """Three convolution blocks and two linear layers, with or without batch normalisation.

    Args:
        num_classes: outputs.
        in_chans: 1 (grey) or 3 (RGB).
        img_size: side of the square input, pixels; at least 8.
        width: channels of the first block; the others have twice and four times as many.
        norm: "batch" or "none".
    """

    def __init__(
        self, num_classes: int, in_chans: int = 3, img_size: int = 32, width: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        if norm not in ("batch", "none"):
            raise ValueError(f"norm is {norm!r}; it must be 'batch' or 'none'")
        channels = [in_chans, width, 2 * width, 4 * width]
        self.features = nn.Sequential(
            *(_block(channels[i], channels[i + 1], norm == "batch") for i in range(3)), nn.AdaptiveAvgPool2d(2)
        )
        self.hidden = nn.Linear(16 * width, 8 * width)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Args: pixel_values: (N, C, H, W). labels: (N,) int64. Returns: logits (N, classes), and loss with labels."""
        logits = self.head(torch.relu(self.hidden(self.features(pixel_values).flatten(1))))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def _block(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2))


REGISTERED: dict[str, Callable[..., nn.Module]] = {"small-cnn": SmallCNN}
_INTEGERS: dict[str, tuple[Container[int], str]] = {
    "num_classes": (range(2, 100_001), "an integer from 2 to 100,000"),
    "in_chans": ((1, 3), "1 or 3"),
    "img_size": (range(8, 1025), "an integer from 8 to 1024"),
    "width": (range(1, 1025), "an integer from 1 to 1024"),
}
_NOT_ARGUMENTS = ("architecture", "library", "label_names", "mean", "std")  # fields that describe data or labels


def build_registered(config: dict[str, Any]) -> nn.Module:
    """The module a config names; its weights are random.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``.
    """
    name = config["architecture"]
    if not isinstance(name, str) or name not in REGISTERED:
        raise KnownError(
            "unsupported_architecture",
            f"architecture {str(name)[:80]!r} is not registered",
            f"Registered: {sorted(REGISTERED)}. For others say whose they are: "
            '{"library": "timm" or "torchvision", "architecture": ..., "num_classes": ...}.',
        )
    arguments = {key: value for key, value in config.items() if key not in _NOT_ARGUMENTS}
    accepted = inspect.signature(REGISTERED[name]).parameters
    for key, value in arguments.items():
        if key not in accepted:
            raise KnownError(
                "config_invalid", f"{name} has no argument {key[:80]!r}", f"Its arguments: {sorted(accepted)}."
            )
        if key in _INTEGERS:
            allowed, words = _INTEGERS[key]
            if type(value) is not int or value not in allowed:
                raise KnownError("config_invalid", f"{key} is {str(value)[:80]!r} in the config", f"Give {words}.")
    try:
        return REGISTERED[name](**arguments)
    except (TypeError, ValueError) as error:
        raise KnownError(
            "config_invalid", f"{name} cannot be built: {str(error)[:200]}", f"Its arguments: {sorted(accepted)}."
        ) from error


class RegisteredNetwork(StateDictNetwork):
    """A plain state dict of an architecture in :data:`REGISTERED`."""

    library: Library = "registered"

    def __init__(self, config: dict[str, Any]) -> None:
        with torch.device("meta"):
            build_registered(config)  # says what is wrong with the config
        self.architecture, num_labels = config["architecture"], int(config["num_classes"])
        names = names_of_labels(config.get("label_names"), num_labels, "label_names")
        super().__init__(config, lambda count: build_registered({**config, "num_classes": count}), num_labels, names)

    def _with_labels(self, network: nn.Module) -> nn.Module:
        return network  # it takes them itself
