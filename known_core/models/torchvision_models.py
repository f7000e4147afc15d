"""torchvision's image classifiers, as bare state dicts."""

from typing import Any

from torch import nn

from known_core.errors import KnownError
from known_core.models.base import Library, StateDictNetwork, library_on, names_of_labels

_NOT_ARGUMENTS = ("library", "architecture", "num_classes", "label_names", "mean", "std", "img_size")
_MAX_CLASSES = 100_000


class TorchvisionNetwork(StateDictNetwork):
    """The network that a config names.

    {"library": "torchvision", "architecture": "resnet18", "num_classes": 10, "label_names": [...]}

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
    """

    library: Library = "torchvision"

    def __init__(self, config: dict[str, Any]) -> None:
        import torchvision  # takes a second: only where a network is torchvision's

        self.architecture, num_labels = str(config.get("architecture"))[:80], config.get("num_classes")
        if self.architecture not in torchvision.models.list_models(module=torchvision.models):
            raise KnownError(
                "unsupported_architecture",
                f"torchvision {torchvision.__version__} has no image classifier {self.architecture!r}",
                "torchvision.models.list_models(module=torchvision.models) has the names.",
            )
        if type(num_labels) is not int or not 2 <= num_labels <= _MAX_CLASSES:
            raise KnownError(
                "config_invalid",
                f"num_classes is {str(num_labels)[:80]!r} in the config",
                f"Give an integer from 2 to {_MAX_CLASSES}.",
            )
        if unknown := sorted(config.keys() - set(_NOT_ARGUMENTS)):
            raise KnownError("config_invalid", f"unknown fields {unknown[:5]}", f"Known: {list(_NOT_ARGUMENTS)}.")
        auxiliary = {"aux_logits": False, "init_weights": False}  # of networks that train with outputs in the middle
        arguments = auxiliary if self.architecture in ("googlenet", "inception_v3") else {}

        def build(count: int) -> nn.Module:
            network: nn.Module = torchvision.models.get_model(
                self.architecture, weights=None, num_classes=count, **arguments
            )
            return network

        names = names_of_labels(config.get("label_names"), num_labels, "label_names")
        with library_on("torchvision", "the config", "config_invalid"):
            super().__init__(config, build, num_labels, names)
