"""Image classifiers: from a config and a checkpoint to a module and back, for transformers and registered networks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.reader import WEIGHTS
from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.files import atomic_path
from known_core.tasks.architectures import NOT_ARGUMENTS, build_registered

Preprocess = Callable[[list[Image.Image]], Tensor]  # images to (N, C, H, W) float32
Shapes = Mapping[str, tuple[int, ...]]
_REFUSED_FIELDS = ("trust_remote_code", "_attn_implementation_internal", "_attn_implementation", "custom_pipelines")
_MAX_CONFIG_BYTES = 1 << 20

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class Classifier(Protocol):
    """One family of image classifiers. ``num_labels`` and ``label_names`` are those of the checkpoint's head."""

    num_labels: int
    label_names: list[str] | None

    def check(self, shapes: Shapes) -> None:
        """Raises: KnownError ``tensors_mismatch`` when a checkpoint's names or shapes are not this network's."""

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The network with the checkpoint's weights, float32, on the CPU."""

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        """The same with a freshly initialised head."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model's state under its checkpoint's names, float32."""

    def preprocessor(self, folder: Path) -> Preprocess:
        """From images to the network's input."""


def read_config(source: Source, given: dict[str, Any] | None) -> dict[str, Any]:
    """The model's config: config.json beside the weights, or the one given with the request.

    Raises:
        KnownError: ``config_missing``, ``config_invalid``, ``remote_code_refused``, ``config_field_refused``.
    """
    names = source.names()
    code = [name for name in names if name.endswith(".py")]
    if code:
        raise KnownError("remote_code_refused", f"the checkpoint holds code: {code[0][:120]}", "Remove every .py file.")
    if "config.json" in names and given is not None:
        raise KnownError(
            "config_invalid", "the checkpoint has a config.json and the request a config", "Give one of them."
        ).at("/model/config")
    config: Any = given
    if given is None:
        if "config.json" not in names:
            raise KnownError(
                "config_missing",
                "the checkpoint has no config.json",
                'Zip the folder save_pretrained wrote, or name a registered architecture in the request: "config": '
                '{"architecture": "small-cnn", "num_classes": 10, ...}.',
            )
        try:
            with source.open("config.json") as stream:
                config = json.loads(stream.read(_MAX_CONFIG_BYTES + 1))
        except (ValueError, RecursionError) as error:
            raise KnownError("config_invalid", f"config.json is not JSON: {type(error).__name__}", "") from error
    if not isinstance(config, dict):
        raise KnownError("config_invalid", f"the config is a JSON {type(config).__name__}", "It must be an object.")
    _refuse_code(config)
    return config


def _refuse_code(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "auto_map":
                raise KnownError(
                    "remote_code_refused",
                    f"the config has auto_map, which points at code: {str(item)[:120]}",
                    "Remove auto_map and use an architecture that transformers has itself.",
                )
            if key in _REFUSED_FIELDS and item is not None:
                raise KnownError(
                    "config_field_refused", f"the config sets {key}", "Remove the field: it can run foreign code."
                )
            _refuse_code(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_code(item)


def classifier_for(config: dict[str, Any]) -> Classifier:
    """The family a config belongs to.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``.
    """
    if "architecture" in config:
        return RegisteredClassifier(config)
    return TransformersClassifier(config)


class RegisteredClassifier:
    """A plain state dict of an architecture in :mod:`known_core.tasks.architectures`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        with torch.device("meta"):
            model = build_registered(config)
        self._expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.num_labels = int(config["num_classes"])
        names = config.get("label_names")
        if names is not None and (
            not isinstance(names, list)
            or len(names) != self.num_labels
            or not all(isinstance(name, str) for name in names)
        ):
            raise KnownError(
                "config_invalid", "label_names is not a list of num_classes strings", "Correct or drop it."
            )
        self.label_names = names

    def check(self, shapes: Shapes) -> None:
        expected = self._expected
        problems = [f"missing {name}" for name in expected.keys() - shapes.keys()]
        problems += [f"unexpected {name}" for name in shapes.keys() - expected.keys()]
        problems += [
            f"{name} is {list(shapes[name])}, the config asks for {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ]
        _raise_mismatch(problems)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        model = build_registered(self._config)
        model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors})
        return model

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = build_registered({**self._config, "num_classes": num_labels, "label_names": None})
        head = ("head.weight", "head.bias")
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors if name not in head}
        model.load_state_dict({**tensors, **{name: model.state_dict()[name] for name in head}})
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        with atomic_path(folder / WEIGHTS) as temporary:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, temporary, metadata={"format": "pt"})

    def preprocessor(self, folder: Path) -> Preprocess:
        channels = self._config.get("in_chans", 3)
        size = self._config.get("img_size", 32)
        mean = torch.tensor(self._config.get("mean", [0.5] * channels)).view(1, -1, 1, 1)
        std = torch.tensor(self._config.get("std", [0.5] * channels)).view(1, -1, 1, 1)

        def preprocess(images: list[Image.Image]) -> Tensor:
            resized = [
                image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
                for image in (image.convert(_mode(channels)) for image in images)
            ]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
            pixels = pixels.unsqueeze(1) if channels == 1 else pixels.permute(0, 3, 1, 2)
            return (pixels.float() / 255 - mean) / std

        return preprocess


class TransformersClassifier:
    """A transformers image-classification checkpoint folder."""

    def __init__(self, config: dict[str, Any]) -> None:
        model_type = config.get("model_type")
        names = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(str(model_type), ())
        allowed = (names,) if isinstance(names, str) else tuple(names)
        architectures = config.get("architectures") or list(allowed[:1])
        if not isinstance(architectures, list) or not architectures or architectures[0] not in allowed:
            raise KnownError(
                "unsupported_architecture",
                f"model_type {str(model_type)[:80]!r} with architectures {str(architectures)[:120]} is not an image "
                "classifier that transformers has",
                'Give a ...ForImageClassification checkpoint (config.json with "architectures" and "model_type"), or a '
                "registered architecture.",
            )
        self._class = getattr(transformers, architectures[0])
        try:
            self._config = transformers.AutoConfig.for_model(**config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise KnownError(
                "config_invalid", f"the config is not valid: {error}", "Write it with save_pretrained."
            ) from error
        id2label: dict[int, str] = getattr(self._config, "id2label", None) or {}
        self.num_labels = len(id2label)
        labels = [str(id2label.get(index, "")) for index in range(self.num_labels)]
        generic = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
        self.label_names = None if generic else labels

    def _build(self, config: Any, tensors: dict[str, Tensor], **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        model, info = self._class.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        return model, info

    def check(self, shapes: Shapes) -> None:
        try:
            tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            _, info = self._build(self._config, tensors, device_map="meta")
        except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
            raise KnownError("config_invalid", f"the model cannot be built: {error}", "Correct config.json.") from error
        problems = [f"missing {name}" for name in info["missing_keys"]]
        problems += [f"unexpected {name}" for name in info["unexpected_keys"]]
        problems += [
            f"{name} is {list(got)}, the config asks for {list(wanted)}"
            for name, got, wanted in info["mismatched_keys"]
        ]
        _raise_mismatch(problems)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        model, _ = self._build(self._config, _fresh_tensors(checkpoint), dtype=torch.float32)
        return model

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        config = type(self._config).from_dict({**self._config.to_dict(), "id2label": None, "label2id": None})
        config.num_labels = num_labels
        base = f"{self._class.base_model_prefix}."
        tensors = {name: tensor for name, tensor in _fresh_tensors(checkpoint).items() if name.startswith(base)}
        transformers.set_seed(seed)
        model, _ = self._build(config, tensors, dtype=torch.float32)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, transformers.PreTrainedModel)
        model.save_pretrained(folder)

    def preprocessor(self, folder: Path) -> Preprocess:
        if not (folder / "preprocessor_config.json").is_file():
            raise _no_processor()
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, local_files_only=True
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise KnownError("processor_invalid", f"preprocessor_config.json: {error}", "") from error
        channels = int(getattr(self._config, "num_channels", 3))

        def preprocess(images: list[Image.Image]) -> Tensor:
            batch = processor([image.convert(_mode(channels)) for image in images], return_tensors="pt")
            pixels: Tensor = batch["pixel_values"]
            return pixels

        return preprocess


def check_processor(source: Source, config: dict[str, Any]) -> None:
    """Raises: KnownError ``processor_missing`` where a transformers checkpoint does not say how images enter it."""
    if "architecture" not in config and "preprocessor_config.json" not in source.names():
        raise _no_processor()


def _no_processor() -> KnownError:
    return KnownError(
        "processor_missing",
        "the checkpoint has no preprocessor_config.json",
        "Save the image processor beside the weights: processor.save_pretrained(folder).",
    )


def _fresh_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Copies: from_pretrained may adopt the tensors it is given, and training writes into them."""
    return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}


def _raise_mismatch(problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise KnownError(
            "tensors_mismatch",
            f"the weights are not those of the config's network: {'; '.join(sorted(problems)[:20])}{more}",
            "Give the config.json that was saved with these weights.",
        )


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


__all__ = ["NOT_ARGUMENTS", "Classifier", "Preprocess", "check_processor", "classifier_for", "read_config"]
