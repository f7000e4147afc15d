"""The network of a checkpoint, whoever's library it is of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from known_core.checkpoint.reader import stored_shapes
from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.models.config import ADAPTER_CONFIG, read_config, read_fields
from known_core.models.registered import RegisteredNetwork
from known_core.models.timm_models import TimmNetwork
from known_core.models.torchvision_models import TorchvisionNetwork
from known_core.models.transformers_models import TransformersNetwork

_LIBRARIES: dict[str, Callable[[dict[str, Any]], Network]] = {
    "registered": RegisteredNetwork, "timm": TimmNetwork, "torchvision": TorchvisionNetwork,
}  # fmt: skip


def open_network(
    build: Callable[[dict[str, Any]], Network],
    model: Source,
    given: dict[str, Any] | None,
    base: Source | None,
    base_folder: Path | None,
) -> Network:
    """The network of a checkpoint.

    Args:
        build: a task's own, from a config.
        model: the checkpoint's files.
        given: the config that came with the request, where the checkpoint has none; of an adapter, what differs from
            its base's, such as the names of its labels.
        base: for an adapter, the files of the model it was trained on.
        base_folder: where these are on disk, once they are.

    Raises:
        KnownError: ``config_missing``, ``config_invalid``, ``base_missing``, and what the families raise.
    """
    if ADAPTER_CONFIG not in model.names():
        return build(read_config(model, given))
    config = read_fields(model, ADAPTER_CONFIG, "config_invalid")
    if base is None:
        raise KnownError(
            "base_missing",
            f"the checkpoint is an adapter of {str(config.get('base_model_name_or_path'))[:120]!r}",
            'Give its base model too: "model": {..., "base": {...}}.',
        )
    from known_core.models.adapters import AdapterNetwork, labels_of_head  # peft takes two seconds to import

    own = read_config(model, given) if given is not None or "config.json" in model.names() else {}
    # peft, too, takes the class of the adapter's task: the base is often stored as what it was pre-trained for
    fields = {**read_config(base, None), **own, "architectures": None}
    network = build(fields)
    if not isinstance(network, TransformersNetwork):
        raise KnownError("unsupported_architecture", "the adapter's base is no transformers model", "Give one that is.")
    count = labels_of_head(network, stored_shapes(model))
    if count not in (None, network.num_labels):
        network = build({**fields, "num_labels": count, "id2label": None, "label2id": None})
    assert isinstance(network, TransformersNetwork)
    return AdapterNetwork(config, network, stored_shapes(base), base_folder)


def image_classifier_of(config: dict[str, Any]) -> Network | None:
    """The state dict that a config describes, or None where it is transformers' own.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
    """
    if "architecture" not in config:
        return None
    library = config.get("library")
    if library is None:
        library = "timm" if {"pretrained_cfg", "num_features"} & config.keys() else "registered"
    if not isinstance(library, str) or library not in _LIBRARIES:
        raise KnownError(
            "config_invalid", f"library is {str(library)[:80]!r} in the config", f"Choose one of {sorted(_LIBRARIES)}."
        )
    return _LIBRARIES[library](config)
