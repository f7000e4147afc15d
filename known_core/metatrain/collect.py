"""Collect trajectories: small networks trained on real images, then made to forget (paper, section 4.2)."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Subset

from known_core.files import atomic_folder, write_json
from known_core.forgetting import nested_subsets
from known_core.sample_data import ImageArrays, load_sample
from known_core.tasks.architectures import SmallCNN
from known_core.training import default_device, fine_tune

STATES = 7  # states a trajectory holds: two windows of five with their targets
ARCHITECTURES = ("cnn-batch", "cnn-plain", "resnet", "vit")


@dataclass(frozen=True)
class Recipe:
    """One trajectory's settings, drawn from its seed (ranges: paper, section 4.2, cut to what two cores train)."""

    seed: int
    data: str
    architecture: str
    width: int
    examples: int
    pretraining_epochs: int
    pretraining_learning_rate: float
    rate: float
    epochs_per_stage: int
    learning_rate: float
    batch_size: int


def draw_recipe(seed: int, samples: Sequence[str]) -> Recipe:
    """The recipe of a seed."""
    generator = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    rate = float(generator.uniform(0.4, 0.9))
    smallest_useful = math.ceil(25 / rate ** (STATES - 2))  # so that the last stages still shrink
    return Recipe(
        seed=seed,
        data=str(generator.choice(list(samples))),
        architecture=str(generator.choice(list(ARCHITECTURES))),
        width=int(generator.choice([8, 16])),
        examples=max(smallest_useful, int(generator.integers(600, 2500))),
        pretraining_epochs=int(generator.integers(4, 12)),
        pretraining_learning_rate=log_uniform(5e-4, 4e-3),
        rate=rate,
        epochs_per_stage=int(generator.integers(1, 5)),
        learning_rate=log_uniform(1e-5, 4e-3),
        batch_size=int(generator.choice([32, 64, 128])),
    )


class _Tensors(Dataset[dict[str, Tensor]]):
    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self._pixels[index], "labels": self._labels[index]}


def image_tensors(arrays: ImageArrays, size: int) -> _Tensors:
    pixels = torch.from_numpy(arrays.images).float().div(127.5).sub(1)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if pixels.shape[-1] != size:
        pixels = interpolate(pixels, size=(size, size), mode="bilinear")
    return _Tensors(pixels.contiguous(), torch.from_numpy(arrays.labels))


def build_network(architecture: str, classes: int, channels: int, size: int, width: int) -> nn.Module:
    """A small network with random weights: one of :data:`ARCHITECTURES`."""
    import transformers

    if architecture.startswith("cnn-"):
        norm = "batch" if architecture == "cnn-batch" else "none"
        return SmallCNN(classes, channels, size, width, norm)
    if architecture == "resnet":
        config: Any = transformers.AutoConfig.for_model(
            "resnet",
            num_channels=channels, embedding_size=width, hidden_sizes=[width, 2 * width, 4 * width],
            depths=[1, 1, 1], layer_type="basic", num_labels=classes,
        )  # fmt: skip
        return transformers.ResNetForImageClassification(config)
    config = transformers.AutoConfig.for_model(
        "vit",
        num_channels=channels, image_size=size, patch_size=size // 7, hidden_size=4 * width, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=8 * width, num_labels=classes,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def collect_one(recipe: Recipe, sample: ImageArrays, folder: Path) -> None:
    """Train, forget, and write the seven states: state-0 is Θ_0, trained on everything."""
    generator = np.random.default_rng([recipe.seed, 1])
    arrays = sample.take(generator.permutation(len(sample.labels))[: recipe.examples])
    data = image_tensors(arrays, 28)
    channels = 1 if arrays.images.ndim == 3 else 3
    torch.manual_seed(recipe.seed)
    model = build_network(recipe.architecture, len(arrays.classes), channels, 28, recipe.width)
    subsets = nested_subsets(arrays.labels, recipe.rate, STATES, recipe.seed)
    device = default_device()
    with atomic_folder(folder) as temporary:
        for state in range(STATES):
            loss = fine_tune(
                model,
                Subset(data, subsets[state].tolist()),
                epochs=recipe.pretraining_epochs if state == 0 else recipe.epochs_per_stage,
                learning_rate=recipe.pretraining_learning_rate if state == 0 else recipe.learning_rate,
                batch_size=recipe.batch_size,
                seed=recipe.seed + state,
                device=device,
                schedule="cosine" if state == 0 else "constant",
            )
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(tensors, temporary / f"state-{state}.safetensors", metadata={"format": "pt"})
        write_json(temporary / "trajectory.json", {**asdict(recipe), "last_loss": loss})


def collect(
    out: Path, samples: Sequence[str], budget_s: float, first_seed: int, on_trajectory: Callable[[int, float], None]
) -> int:
    """Collect trajectories until the time is spent. Those already in ``out`` are kept and not made again.

    Args:
        samples: names :func:`~known_core.sample_data.load_sample` takes.
        on_trajectory: called with the number collected and the seconds left.

    Returns:
        The number of trajectories in ``out``.
    """
    loaded = {name: load_sample(name) for name in samples}
    begun = time.monotonic()
    seed = first_seed
    while (left := budget_s - (time.monotonic() - begun)) > 0:
        folder = out / f"trajectory-{seed:06d}"
        if not folder.is_dir():
            collect_one(draw_recipe(seed, samples), loaded[draw_recipe(seed, samples).data], folder)
            on_trajectory(seed - first_seed + 1, left)
        seed += 1
    return len(list(out.glob("trajectory-*")))


def held_out(folder: Path, share: float = 0.15) -> bool:
    """Whether a trajectory is kept from fitting: by a hash of its name, so that adding more moves none."""
    return hashlib.sha256(folder.name.encode()).digest()[0] < 256 * share
