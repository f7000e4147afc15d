"""A protocol's data: source examples in the order of a pre-training seed, downstream ones, and the network for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from known_core.bench.protocols import Protocol
from known_core.errors import KnownError
from known_core.examples import Examples, image_examples, text_examples
from known_core.files import read_json, sha256_file, write_json
from known_core.networks import build_network, build_text_network
from known_core.sample_data import ImageArrays, load_sample
from known_core.sample_text import TextArrays, load_text
from known_core.stages import Stages


@dataclass(frozen=True)
class Data:
    """A protocol's examples: the source classes in the order of a pre-training seed, and the downstream ones."""

    source: Examples
    source_test: Examples
    pool: Examples
    test: Examples
    classes: int
    downstream_classes: int
    build: Callable[[int], nn.Module]  # a network with this many outputs


@cache
def _arrays(bench_folder: Path, data: str, path: Path | None) -> ImageArrays | TextArrays:
    """Decoding a zip takes longer than training on it, so its pixels are kept."""
    if data == "wordnet":
        return load_text(data)
    if path is None:
        return load_sample(data)

    def decode(out: Path) -> None:
        arrays = load_sample(str(path))
        np.save(out / "images.npy", arrays.images)
        np.save(out / "labels.npy", arrays.labels)
        write_json(out / "classes.json", arrays.classes)

    folder = Stages(bench_folder, shared=True).run("pixels", {"zip": sha256_file(path)}, decode)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return ImageArrays(images, np.load(folder / "labels.npy"), tuple(read_json(folder / "classes.json")))


@cache
def load_data(bench_folder: Path, protocol: Protocol, path: Path | None, seed: int) -> Data:
    """A protocol's data for one pre-training seed. The downstream split is the same for all, where its classes are
    others than the source's.

    Raises:
        KnownError: ``dataset_unusable`` when there is less than the protocol needs; and what loading raises.
    """
    arrays = _arrays(bench_folder, protocol.data, path)
    source, downstream = (_of_classes(arrays, classes) for classes in (protocol.source, protocol.downstream))
    order = np.random.default_rng([seed, 3]).permutation(len(source.labels))
    wanted = protocol.examples * max((1, *protocol.multiples)) + protocol.test_examples
    if protocol.downstream == protocol.source:  # D_0's own task learned again, on unseen examples
        downstream = source.take(order[wanted:])
    pool = protocol.probe_examples + protocol.shots + protocol.test_examples
    for what, have, need in (("source", len(source.labels), wanted), ("downstream", len(downstream.labels), pool)):
        if have < need:
            raise KnownError(
                "dataset_unusable",
                f"{protocol.name} wants {need} examples of its {what} classes; {protocol.data} has {have}",
                "Give the whole data set.",
            )
    split = np.random.default_rng(4).permutation(len(downstream.labels))
    test = protocol.test_examples
    make = partial(_examples, protocol=protocol)
    return Data(
        source=make(source.take(order[test:][: wanted - test])),
        source_test=make(source.take(order[:test])),
        pool=make(downstream.take(split[test:])),
        test=make(downstream.take(split[:test])),
        classes=len(source.classes),
        downstream_classes=len(downstream.classes),
        build=partial(_network, arrays, protocol),
    )


def _of_classes(arrays: ImageArrays | TextArrays, classes: tuple[int, ...]) -> Any:
    return arrays.of_classes(list(classes))


def _examples(arrays: ImageArrays | TextArrays, protocol: Protocol) -> Examples:
    if isinstance(arrays, TextArrays):
        return text_examples(arrays)
    return image_examples(arrays, protocol.size, augment=protocol.augment)


def _network(arrays: ImageArrays | TextArrays, protocol: Protocol, classes: int) -> nn.Module:
    if isinstance(arrays, TextArrays):
        return build_text_network(arrays.vocabulary, arrays.tokens.shape[1], classes, protocol.width)
    channels = 1 if arrays.images.ndim == 3 else 3
    model = build_network(protocol.architecture, classes, channels, protocol.size, protocol.width)
    channels_last: nn.Module = model.to(memory_format=torch.channels_last)
    return channels_last
