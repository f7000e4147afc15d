"""timm's image classifiers: a folder that timm.models.save_for_hf or push_to_hf_hub wrote, or a bare state dict."""

from typing import Any

from torch import nn

from known_core.errors import KnownError
from known_core.models.base import Library, StateDictNetwork, library_on, names_of_labels
from known_core.models.config import check_sizes

_MAX_SIZES = 2_000_000  # the integers of model_args added up
_MAX_CLASSES = 100_000
_OTHER_WEIGHTS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


class TimmNetwork(StateDictNetwork):
    """The network that a config names.

    {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [], ...}}

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
    """

    library: Library = "timm"

    def __init__(self, config: dict[str, Any]) -> None:
        import timm  # takes two seconds: only where a network is timm's

        self.architecture = str(config.get("architecture"))[:80]
        if self.architecture not in timm.list_models():
            raise KnownError(
                "unsupported_architecture",
                f"timm {timm.__version__} has no architecture {self.architecture!r}",
                "timm.list_models() has the names.",
            )
        self.pretrained_cfg = _section(config, "pretrained_cfg")
        num_labels = config.get("num_classes", self.pretrained_cfg.get("num_classes"))
        if type(num_labels) is not int or not 2 <= num_labels <= _MAX_CLASSES:
            raise KnownError(
                "config_invalid",
                f"num_classes is {str(num_labels)[:80]!r} in the config",
                f"Give an integer from 2 to {_MAX_CLASSES}.",
            )
        names = config.get("label_names", self.pretrained_cfg.get("label_names"))
        arguments = _section(config, "model_args")
        if isinstance(config.get("global_pool"), str):
            arguments = {"global_pool": config["global_pool"], **arguments}
        check_sizes(arguments, _MAX_SIZES, "model_args", "model_too_large")
        arguments.pop("num_classes", None)
        if refused := sorted(_OTHER_WEIGHTS & set(arguments)):
            raise KnownError(
                "config_field_refused", f"model_args sets {refused}", "Remove it: weights come from the upload."
            )

        def build(count: int) -> nn.Module:
            network: nn.Module = timm.create_model(self.architecture, pretrained=False, num_classes=count, **arguments)
            return network

        with library_on("timm", "the config", "config_invalid"):
            super().__init__(config, build, num_labels, names_of_labels(names, num_labels, "label_names"))


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise KnownError("config_invalid", f"{name} is {str(value)[:80]!r} in the config", "Give an object.")
    return dict(value)
