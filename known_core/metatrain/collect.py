"""Collect trajectories: small networks trained on real data, then made to forget (paper, section 4.2).

A shard has one of the two designs of :mod:`known_core.forgetting`; a fan's also has states trained on more data than
D_0, which are what the hyper-model learns to predict.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.training_args import OptimizerNames

from known_core.checkpoint.writer import save_tensors
from known_core.errors import KnownError
from known_core.examples import Examples, image_examples, text_examples
from known_core.files import sha256_file, write_json
from known_core.forgetting import FAN_AVERAGED, Design, nested_subsets
from known_core.networks import IMAGE_ARCHITECTURES, build_network, build_text_network
from known_core.sample_data import ImageArrays, load_sample
from known_core.sample_text import TextArrays, load_text
from known_core.training import default_device, fine_tune

Arrays = ImageArrays | TextArrays
STATES: dict[Design, int] = {"chain": 7, "fan": 7}  # states a trajectory holds, most data first
LARGER = 3  # of a fan's states, those trained on more than D_0
TEXTS = ("wordnet",)
_IMAGE_SIZE = 21  # pixels; "vit" and "mixer" cut it in 7 x 7 patches
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """One trajectory's settings, drawn from its seed (ranges: paper, section 4.2, cut to what two cores train)."""

    seed: int
    design: Design
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
    optimizer: str
    augment: bool


def draw_recipe(
    seed: int,
    sizes: Mapping[str, int],
    design: Design,
    architectures: Sequence[str],
    optimizers: Sequence[str] = ("adamw_torch",),
) -> Recipe:
    """The recipe of a seed.

    Args:
        sizes: the number of examples of each data set.
    """
    generator = np.random.default_rng(seed)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(generator.uniform(np.log(low), np.log(high))))

    data = str(generator.choice(list(sizes)))
    rate = float(generator.uniform(0.4, 0.9) if design == "chain" else generator.uniform(0.45, 0.7))
    smaller = STATES[design] - 2 - (0 if design == "chain" else LARGER)
    available = sizes[data] if design == "chain" else int(sizes[data] * rate**LARGER)
    smallest_useful = math.ceil(25 / rate**smaller)  # so that the last stages still shrink
    return Recipe(
        seed=seed,
        design=design,
        data=data,
        architecture="text-transformer" if data in TEXTS else str(generator.choice(list(architectures))),
        width=int(generator.choice([8, 16])),
        examples=min(available, max(smallest_useful, int(generator.integers(300, 900)))),
        pretraining_epochs=int(generator.integers(6, 25)),
        pretraining_learning_rate=log_uniform(5e-4, 4e-3),
        rate=rate,
        epochs_per_stage=int(generator.integers(1, 5) if design == "chain" else generator.integers(2, 7)),
        learning_rate=log_uniform(1e-5, 4e-3) if design == "chain" else log_uniform(2e-4, 4e-3),
        batch_size=int(generator.choice([32, 64])),
        augment=bool(generator.random() < 0.7),
        optimizer=str(generator.choice(list(optimizers))),
    )


def load_arrays(name: str) -> Arrays:
    """Images or text by name: "digits", "fashion", "wordnet", or the path of an imagefolder zip."""
    return load_text(name) if name in TEXTS else load_sample(name)


def collect_one(recipe: Recipe, arrays: Arrays, path: Path, dtype: str = "float32") -> None:
    """Train, forget, and write one shard: its states, the first the one of most data, and a fan's Θ_0.

    The shard holds ``start.NAME`` in float32 (Θ_0, or a chain's first state) and ``K.NAME``, the displacement of
    state K from it in ``dtype``: a difference keeps its precision where the state itself in float16 would lose it.
    """
    generator = np.random.default_rng([recipe.seed, 1])
    largest = recipe.examples if recipe.design == "chain" else round(recipe.examples / recipe.rate**LARGER)
    order = generator.permutation(len(arrays.labels))
    data, model = _start(recipe, arrays)
    subsets = nested_subsets(arrays.labels[order[:largest]], recipe.rate, STATES[recipe.design], recipe.seed)
    sets = [data.take(order[subset]) for subset in subsets]
    d0 = sets[0] if recipe.design == "chain" else sets[LARGER]
    _train(model, d0, recipe, recipe.pretraining_epochs, recipe.pretraining_learning_rate, 0, "cosine", 0.0)
    start = _weights(model)
    states = [start]
    if recipe.design == "chain":
        for stage, subset in enumerate(sets[1:], start=1):
            _train(model, subset, recipe, recipe.epochs_per_stage, recipe.learning_rate, stage, "constant", 0.0)
            states.append(_weights(model))
    else:
        states = []
        for stage, subset in enumerate(sets, start=1):
            model.load_state_dict(start)
            _train(
                model, subset, recipe, recipe.epochs_per_stage, recipe.learning_rate, stage, "constant", FAN_AVERAGED
            )
            states.append(_weights(model))
    tensors = {f"start.{name}": tensor for name, tensor in start.items()}
    for index, state in enumerate(states):
        tensors |= {
            f"{index}.{name}": (tensor - start[name]).to(_DTYPES[dtype])
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
    save_tensors(path, tensors, {"format": "pt", "recipe": json.dumps(asdict(recipe), sort_keys=True)})


def _start(recipe: Recipe, arrays: Arrays) -> tuple[Examples, nn.Module]:
    torch.manual_seed(recipe.seed)
    classes = len(arrays.classes)
    if isinstance(arrays, TextArrays):
        network = build_text_network(arrays.vocabulary, arrays.tokens.shape[1], classes, recipe.width)
        return text_examples(arrays), network
    channels = 1 if arrays.images.ndim == 3 else 3
    network = build_network(recipe.architecture, classes, channels, _IMAGE_SIZE, recipe.width)
    return image_examples(arrays, _IMAGE_SIZE, augment=recipe.augment), network


def _train(
    model: nn.Module, data: Examples, recipe: Recipe, epochs: int, learning_rate: float, stage: int, schedule: str,
    average_last: float,
) -> None:  # fmt: skip
    fine_tune(
        model,
        data,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=recipe.batch_size,
        seed=recipe.seed + stage,
        device=default_device(),
        schedule=schedule,
        optimizer=recipe.optimizer,
        average_last=average_last,
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def collect(
    out: Path,
    samples: Sequence[str],
    budget_s: float,
    first_seed: int,
    on_trajectory: Callable[[int, float], None],
    *,
    design: str = "fan",
    architectures: Sequence[str] = IMAGE_ARCHITECTURES,
    dtype: str = "float32",
    optimizers: Sequence[str] = ("adamw_torch",),
) -> int:
    """Collect trajectories until the time is spent. Those already in ``out`` are kept and not made again.

    Args:
        samples: names :func:`load_arrays` takes.
        optimizers: transformers' names; each trajectory draws one.
        on_trajectory: called with the number collected and the seconds left.

    Returns:
        The number of trajectories in ``out``, all listed with their sha256 and recipe in ``out/manifest.json``.
    """
    _one_of("design", design, get_args(Design))
    checked = cast(Design, design)
    _one_of("dtype", dtype, tuple(_DTYPES))
    for optimizer in optimizers:
        _one_of("optimizer", optimizer, [name.value for name in OptimizerNames])
    for architecture in architectures:
        _one_of("architecture", architecture, IMAGE_ARCHITECTURES)
    loaded = {name: load_arrays(name) for name in samples}
    sizes = {name: len(arrays.labels) for name, arrays in loaded.items()}
    begun = time.monotonic()
    seed = first_seed
    out.mkdir(parents=True, exist_ok=True)
    try:
        while (left := budget_s - (time.monotonic() - begun)) > 0:
            path = out / f"trajectory-{seed:06d}.safetensors"
            if not path.is_file():
                recipe = draw_recipe(seed, sizes, checked, architectures, optimizers)
                collect_one(recipe, loaded[recipe.data], path, dtype)
                on_trajectory(seed - first_seed + 1, left)
            seed += 1
    finally:
        shards = trajectories(out)
        write_json(
            out / "manifest.json",
            [{"file": path.name, "sha256": sha256_file(path), "recipe": asdict(read_recipe(path))} for path in shards],
        )
    return len(shards)


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise KnownError("option_invalid", f"{what} is {value!r}", f"Choose from {', '.join(allowed)}.")


def trajectories(folder: Path) -> list[Path]:
    """The shards in a folder, in order of their seed."""
    return sorted(folder.glob("trajectory-*.safetensors"))


def read_recipe(path: Path) -> Recipe:
    with safe_open(path, framework="pt") as file:
        return Recipe(**json.loads(file.metadata()["recipe"]))


def held_out(path: Path, share: float = 0.15) -> bool:
    """Whether a trajectory is kept from fitting: by a hash of its name, so that adding more moves none."""
    return hashlib.sha256(path.name.encode()).digest()[0] < 256 * share
