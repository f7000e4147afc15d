"""How images and texts enter a network: always as the checkpoint's own processor says."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from known_core.checkpoint.source import Source
from known_core.data.images import Preprocess
from known_core.errors import KnownError
from known_core.models.base import Network, library_on
from known_core.models.config import check_sizes, read_fields
from known_core.models.timm_models import TimmNetwork

Masks = Callable[[list[NDArray[np.uint8]]], Tensor]  # (H, W) each, to (N, H, W) int64
_MAX_PROCESSOR_SIZES = 5_000  # a processor's integers added up: sides in pixels; 4,482 in the largest of transformers
_MAX_PIXEL = 1e6  # of means and standard deviations: float32 pixels stay finite
_MAX_SIDE = 4096  # pixels
_PROCESSOR = "preprocessor_config.json"
_TOKENIZER_FILES = (  # data, never code
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
_MAX_TOKENIZER_BYTES = 100 << 20
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def image_preprocessor(network: Network, source: Source) -> Preprocess:
    """From images to a network's input, once it has taken a small image.

    Args:
        source: the checkpoint's files.

    Raises:
        KnownError: ``config_invalid``, ``processor_missing``, ``processor_invalid``, ``remote_code_refused``,
            ``config_field_refused``.
    """
    if network.library in ("transformers", "peft"):
        return _transformers_images(network.config, source)
    if isinstance(network, TimmNetwork):
        return _timm_images(network)
    config = network.config
    if network.library == "registered":
        return _square(config, config.get("in_chans", 3), config.get("img_size", 32), [0.5], [0.5])
    return _torchvision_images(config)


def _square(config: dict[str, Any], channels: int, size: int, mean: list[float], std: list[float]) -> Preprocess:
    """Resized to a square whatever the aspect."""
    centre = _per_channel(config, "mean", channels, -_MAX_PIXEL, mean)
    scale = _per_channel(config, "std", channels, 1 / _MAX_PIXEL, std)

    def preprocess(images: list[Image.Image]) -> Tensor:
        resized = [
            image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
            for image in (image.convert(_mode(channels)) for image in images)
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
        pixels = pixels.unsqueeze(1) if channels == 1 else pixels.permute(0, 3, 1, 2)
        return (pixels.float() / 255 - centre) / scale

    return preprocess


def _per_channel(config: dict[str, Any], field: str, channels: int, low: float, default: list[float]) -> Tensor:
    values = config.get(field, default if len(default) == channels else default * channels)
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


def _torchvision_images(config: dict[str, Any]) -> Preprocess:
    """A square of the config's img_size, else what torchvision's own ImageNet presets do."""
    size = config.get("img_size")
    if size is not None:
        if type(size) is not int or not 8 <= size <= _MAX_SIDE:
            raise KnownError(
                "config_invalid", f"img_size is {str(size)[:80]!r} in the config", f"Give 8 to {_MAX_SIDE} pixels."
            )
        return _square(config, 3, size, _IMAGENET["mean"], _IMAGENET["std"])
    normalise = _square(config, 3, 224, _IMAGENET["mean"], _IMAGENET["std"])
    from torchvision.transforms import CenterCrop, Compose, Resize

    crop = Compose([Resize(256), CenterCrop(224)])
    return lambda images: normalise([crop(image.convert("RGB")) for image in images])


def _timm_images(network: TimmNetwork) -> Preprocess:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    with library_on("timm", "pretrained_cfg", "config_invalid"):
        check_sizes(network.pretrained_cfg, 2_000_000, "pretrained_cfg", "config_invalid")
        data = resolve_data_config({}, pretrained_cfg=network.pretrained_cfg)  # type: ignore[no-untyped-call]
        if max(data["input_size"]) > _MAX_SIDE:
            raise KnownError(
                "config_invalid", f"input_size is {data['input_size']}", f"Sides may have {_MAX_SIDE} pixels."
            )
        transform = create_transform(**data, is_training=False)
        mode = _mode(data["input_size"][0])

        def preprocess(images: list[Image.Image]) -> Tensor:
            return torch.stack([transform(image.convert(mode)) for image in images])

        preprocess([Image.new("RGB", (32, 32))])
    return preprocess


def _transformers_images(config: dict[str, Any], source: Source) -> Preprocess:
    return _image_processor(config, source)[0]


def image_and_mask_preprocessor(network: Network, source: Source) -> tuple[Preprocess, Masks, bool]:
    """From images and their masks to a network's input and labels.

    Args:
        source: the files of a transformers checkpoint.

    Returns:
        What images become; what masks of (H, W) uint8 become, (N, H, W) int64; and whether the processor takes 0 for
        background and numbers classes from 1 on.

    Raises:
        KnownError: as :func:`image_preprocessor`.
    """
    images, processor, channels = _image_processor(network.config, source)
    # Some processors of transformers 5 resize the segmentation_maps they are given as they do images, and so mix
    # classes (BEiT's, DPT's). As images that are neither rescaled nor normalised, masks undergo the same geometry.
    geometry = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.NEAREST}

    def masks(arrays: list[NDArray[np.uint8]]) -> Tensor:
        stacked = [Image.fromarray(array).convert(_mode(channels)) for array in arrays]
        batch = processor(stacked, return_tensors="pt", **geometry)
        return batch["pixel_values"][:, 0].long()  # type: ignore[no-any-return]

    with library_on("transformers", _PROCESSOR, "processor_invalid"):
        masks([np.zeros((32, 32), np.uint8)])
    return images, masks, bool(getattr(processor, "do_reduce_labels", False))


def _image_processor(config: dict[str, Any], source: Source) -> tuple[Preprocess, Any, int]:
    """What images become, the processor that does it, and the channels of the network."""
    if _PROCESSOR not in source.names():
        raise KnownError(
            "processor_missing",
            f"the checkpoint has no {_PROCESSOR}",
            "Save the image processor beside the weights: processor.save_pretrained(folder).",
        )
    fields = read_fields(source, _PROCESSOR, "processor_invalid")
    check_sizes(fields, _MAX_PROCESSOR_SIZES, _PROCESSOR, "processor_invalid")

    def preprocess(images: list[Image.Image]) -> Tensor:
        batch = processor([image.convert(_mode(channels)) for image in images], return_tensors="pt")
        pixels: Tensor = batch["pixel_values"]
        return pixels

    # A folder of these two alone: transformers would prefer other files, which nobody has looked at.
    with TemporaryDirectory() as folder, library_on("transformers", _PROCESSOR, "processor_invalid"):
        channels = int(getattr(transformers.AutoConfig.for_model(**config), "num_channels", 3))
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
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
    return preprocess, processor, channels


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def tokenizer_of(config: dict[str, Any], source: Source) -> Any:
    """The checkpoint's tokenizer, with a padding token.

    Args:
        source: the checkpoint's files.

    Raises:
        KnownError: ``processor_missing``, ``processor_invalid``, ``remote_code_refused``, ``config_field_refused``.
    """
    names = [name for name in _TOKENIZER_FILES if name in source.names()]
    if not set(names) - {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}:
        raise KnownError(
            "processor_missing",
            "the checkpoint has no tokenizer",
            "Save the tokenizer beside the weights: tokenizer.save_pretrained(folder).",
        )
    with TemporaryDirectory() as folder, library_on("transformers", "the tokenizer", "processor_invalid"):
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for name in names:
            if source.size(name) > _MAX_TOKENIZER_BYTES:
                raise KnownError("processor_invalid", f"{name} has {source.size(name)} bytes", "Save it again.")
            if name == "tokenizer_config.json":
                fields = read_fields(source, name, "processor_invalid")
                (Path(folder) / name).write_text(json.dumps(fields), encoding="utf-8")
                continue
            with source.open(name) as stream:
                (Path(folder) / name).write_bytes(stream.read())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise KnownError(
                "processor_invalid", "the tokenizer has no token to pad with", "Set tokenizer.pad_token and save it."
            )
        tokenizer("a word")
    return tokenizer
