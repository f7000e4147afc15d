"""Image classifiers: from a config and a checkpoint to a module and back, for transformers and registered networks."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.header import is_utf8
from known_core.checkpoint.reader import WEIGHTS
from known_core.checkpoint.source import FolderSource, Source
from known_core.errors import KnownError
from known_core.files import atomic_path
from known_core.tasks.architectures import build_registered

Preprocess = Callable[[list[Image.Image]], Tensor]  # images to (N, C, H, W) float32
Shapes = Mapping[str, tuple[int, ...]]
_REFUSED_FIELDS = (  # each can name code on the Hub
    "trust_remote_code", "_attn_implementation_internal", "_attn_implementation", "attn_implementation",
    "custom_pipelines",
)  # fmt: skip
_MAX_JSON_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64
_MAX_MODEL_SIZES = 2_000_000  # a config's integers added up; 1.2 million in the largest of transformers (vocabularies)
_MAX_PROCESSOR_SIZES = 5_000  # the same for a processor: sides in pixels; 4,482 in the largest of transformers
_MAX_NETWORK_TENSORS = 10_000  # parameters and buffers; 1,200 in the largest default of transformers
_MAX_NETWORK_ELEMENTS = 1 << 34  # of these; 64 GiB in float32
_MAX_PIXEL = 1e6  # of means and standard deviations: float32 pixels stay finite
_PROCESSOR = "preprocessor_config.json"

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class Classifier(Protocol):
    """One family of image classifiers. ``num_labels`` and ``label_names`` are those of the checkpoint's head."""

    num_labels: int
    label_names: list[str] | None

    def check(self, shapes: Shapes) -> None:
        """Check a checkpoint's names and shapes against the network's, before memory is allocated for its weights.

        Raises:
            KnownError: ``tensors_mismatch``, ``config_invalid``, ``model_too_large``.
        """

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
        raise KnownError(
            "remote_code_refused", f"the checkpoint holds code: {code[0][:120]!r}", "Remove every .py file."
        )
    if "config.json" in names and given is not None:
        raise KnownError(
            "config_invalid", "the checkpoint has a config.json and the request a config", "Give one of them."
        ).at("/model/config")
    if given is None:
        if "config.json" not in names:
            raise KnownError(
                "config_missing",
                "the checkpoint has no config.json",
                'Zip the folder save_pretrained wrote, or name a registered architecture in the request: "config": '
                '{"architecture": "small-cnn", "num_classes": 10, ...}.',
            )
        return _read_fields(source, "config.json", "config_invalid")
    _check_fields(given, "the config", "config_invalid")
    return given


def _read_fields(source: Source, name: str, code: str) -> dict[str, Any]:
    """The object in a JSON file, checked; ``code`` is the error of a file that holds none."""
    hint = f"Write {name} again with save_pretrained."
    try:
        with source.open(name) as stream:
            fields = json.loads(stream.read(_MAX_JSON_BYTES + 1))
    except (ValueError, RecursionError) as error:
        what = f"{name} is not JSON of at most {_MAX_JSON_BYTES} bytes: {type(error).__name__}"
        raise KnownError(code, what, hint) from error
    if not isinstance(fields, dict):
        raise KnownError(code, f"{name} holds a JSON {type(fields).__name__}, not an object", hint)
    _check_fields(fields, name, code)
    return fields


def _check_fields(fields: dict[str, Any], label: str, code: str) -> None:
    """Refuse, at any depth, what could make transformers run code, and what could not be written out again."""
    for key, value, depth in _walk(fields):
        if depth > _MAX_JSON_DEPTH:
            raise KnownError(code, f"{label} is nested more than {_MAX_JSON_DEPTH} deep at {key[:80]!r}", "Flatten it.")
        if not is_utf8(key) or (isinstance(value, str) and not is_utf8(value)):
            raise KnownError(code, f"{label} holds half a surrogate pair at {key[:80]!r}", "Write the text as UTF-8.")
        if key == "auto_map":
            raise KnownError(
                "remote_code_refused",
                f"{label} has auto_map, which points at code: {str(value)[:120]!r}",
                "Remove auto_map and use a class that transformers has itself.",
            )
        if key in _REFUSED_FIELDS and value is not None:
            raise KnownError(
                "config_field_refused",
                f"{label} sets {key} to {str(value)[:80]!r}",
                "Remove the field: it can run foreign code.",
            )


def _check_sizes(fields: dict[str, Any], limit: int, label: str, code: str) -> None:
    """Bound what a constructor is told to make: labels, lists, images of any size, before there is a tensor."""
    total = 0
    for key, value, _ in _walk(fields):
        if type(value) is int:
            total += abs(value)
            if total > limit:
                raise KnownError(
                    code,
                    f"{label} is too large: its integers add up to more than {limit}; "
                    f"{key[:80]!r} is {str(value)[:40]}",
                    "Correct the size, or remove the field where it is not one.",
                )


def _walk(fields: dict[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Each value inside a JSON object, its field's name and its depth; no recursion, as a stranger chose the depth."""
    pending: list[tuple[str, Any, int]] = [("", fields, 0)]
    while pending:
        name, value, depth = pending.pop()
        yield name, value, depth
        if isinstance(value, dict):
            pending += [(key, item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(name, item, depth + 1) for item in value]


def classifier_for(config: dict[str, Any]) -> Classifier:
    """The family a config belongs to.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
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
                "config_invalid",
                f"label_names is {str(names)[:80]!r}; the network has {self.num_labels} outputs",
                f"Give a list of {self.num_labels} strings, or drop it.",
            )
        self.label_names = names
        self._mean = self._per_channel("mean", -_MAX_PIXEL)
        self._std = self._per_channel("std", 1 / _MAX_PIXEL)

    def _per_channel(self, field: str, low: float) -> Tensor:
        channels = self._config.get("in_chans", 3)
        values = self._config.get(field, [0.5] * channels)
        if (
            not isinstance(values, list)
            or len(values) != channels
            or not all(type(value) in (int, float) and low <= value <= _MAX_PIXEL for value in values)
        ):
            raise KnownError(
                "config_invalid",
                f"{field} is {str(values)[:80]!r} in the config",
                f"Give a list of {channels} numbers from {low:g} to {_MAX_PIXEL:g}, one for each channel.",
            )
        return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)

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

        def preprocess(images: list[Image.Image]) -> Tensor:
            resized = [
                image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
                for image in (image.convert(_mode(channels)) for image in images)
            ]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
            pixels = pixels.unsqueeze(1) if channels == 1 else pixels.permute(0, 3, 1, 2)
            return (pixels.float() / 255 - self._mean) / self._std

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
        sizes = {name: value for name, value in config.items() if name != "label2id"}  # its integers number labels
        _check_sizes(sizes, _MAX_MODEL_SIZES, "the config", "model_too_large")
        self._fields = config
        with _transformers_on("the config", "config_invalid"):
            self._config = transformers.AutoConfig.for_model(**config)
        id2label: dict[int, str] = getattr(self._config, "id2label", None) or {}
        self.num_labels = len(id2label)
        if id2label.keys() != set(range(self.num_labels)):
            raise KnownError(
                "config_invalid",
                f"id2label numbers its labels {str(list(id2label))[:80]}",
                f"Number the {self.num_labels} labels from 0, as the outputs are.",
            )
        labels = [str(id2label[index]) for index in range(self.num_labels)]
        generic = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
        self.label_names = None if generic else labels

    def _build(self, config: Any, tensors: dict[str, Tensor], **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        model, info = self._class.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        return model, info

    def check(self, shapes: Shapes) -> None:
        with _transformers_on("the config", "config_invalid"), _bounded_construction():
            tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            _, info = self._build(self._config, tensors, device_map="meta")
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
        return self.preprocessor_of(FolderSource(folder))

    def preprocessor_of(self, source: Source) -> Preprocess:
        """The preprocessor, once it has taken a small image.

        Raises:
            KnownError: ``processor_missing``, ``processor_invalid``, ``remote_code_refused``, ``config_field_refused``.
        """
        if _PROCESSOR not in source.names():
            raise KnownError(
                "processor_missing",
                f"the checkpoint has no {_PROCESSOR}",
                "Save the image processor beside the weights: processor.save_pretrained(folder).",
            )
        fields = _read_fields(source, _PROCESSOR, "processor_invalid")
        _check_sizes(fields, _MAX_PROCESSOR_SIZES, _PROCESSOR, "processor_invalid")
        channels = int(getattr(self._config, "num_channels", 3))

        def preprocess(images: list[Image.Image]) -> Tensor:
            batch = processor([image.convert(_mode(channels)) for image in images], return_tensors="pt")
            pixels: Tensor = batch["pixel_values"]
            return pixels

        # A folder of these two alone: transformers would prefer other files, which nobody has looked at.
        with TemporaryDirectory() as folder, _transformers_on(_PROCESSOR, "processor_invalid"):
            (Path(folder) / "config.json").write_text(json.dumps(self._fields), encoding="utf-8")
            (Path(folder) / _PROCESSOR).write_text(json.dumps(fields), encoding="utf-8")
            processor = transformers.AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                folder, local_files_only=True, trust_remote_code=False
            )
            shape = tuple(preprocess([Image.new("RGB", (32, 32))]).shape)
        if len(shape) != 4 or shape[:2] != (1, channels):
            raise KnownError(
                "processor_invalid",
                f"{_PROCESSOR} makes a tensor of shape {shape} of one image; the network takes (1, {channels}, H, W)",
                "Save the image processor that belongs to the model: processor.save_pretrained(folder).",
            )
        return preprocess


def check_processor(source: Source, config: dict[str, Any]) -> None:
    """Check how images enter a transformers checkpoint.

    Raises:
        KnownError: what :meth:`TransformersClassifier.preprocessor_of` raises.
    """
    if "architecture" not in config:
        TransformersClassifier(config).preprocessor_of(source)


@contextmanager
def _transformers_on(file: str, code: str) -> Iterator[None]:
    """Turn whatever transformers raises over a stranger's file into one KnownError.

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
            f"transformers cannot use {file}: {type(error).__name__}: {str(error)[:300]}",
            "Correct the value it names, or write the file again with save_pretrained.",
        ) from error


@contextmanager
def _bounded_construction() -> Iterator[None]:
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
