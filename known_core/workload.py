"""How much there is to do in a job: told from a few rows of its inputs, before anything is unpacked."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from known_core.calibration import has_batch_norm
from known_core.checkpoint.source import Layered, Source
from known_core.costs import Costs, count
from known_core.data import DataFiles, inspect_data
from known_core.data.files import Role, Split
from known_core.data.images import read_image
from known_core.data.readers import read_columns
from known_core.data.reading import as_roles
from known_core.inputs import Sources, resolve_task
from known_core.models.base import Network, bounded_construction
from known_core.models.opening import open_network
from known_core.spec import DataSettings, JobSpec
from known_core.tasks.base import Batch, Labelled, Task, match_labels
from known_core.tuning import with_defaults_of

_SAMPLE = 64  # rows that are looked at


@dataclass(frozen=True)
class Examples:
    """One set of examples: how many, and what each costs to be made ready once.

    Args:
        pixels: of an image's file; 0 for texts. characters: of a text; 0 for images.
        each_bytes: of one as a network takes it.
    """

    count: int
    pixels: float
    characters: float
    each_bytes: float


@dataclass(frozen=True)
class Workload:
    """What a job on data has to do.

    Args:
        spec: with every setting that its task decides filled in.
        network_library: whose loading it is.
        costs: of the network on examples of the usual length.
        d0, evaluation, pool, test: examples that are trained on, evaluated on, and of the probe.
        batch_norm: whether statistics are re-estimated.
        checkpoint_bytes: of the weights that were given. input_bytes, input_files: of all inputs.
        evaluation_batch: examples that are scored at once.
    """

    spec: JobSpec
    network_library: str
    costs: Costs
    d0: Examples
    evaluation: Examples
    pool: Examples
    test: Examples
    batch_norm: bool
    checkpoint_bytes: int
    input_bytes: int
    input_files: int
    evaluation_batch: int


def measure_inputs(spec: JobSpec, sources: Sources, device: torch.device) -> Workload:
    """What a job that was inspected has to do.

    Raises:
        KnownError: what reading the sample raises.
        Uncountable
    """
    task = resolve_task(spec, sources)
    model, base = sources["model"], sources.get("base")
    network = open_network(task.network, model, spec.config, base, None)
    processor = task.processor(network, Layered(model, base), spec.forgetting.max_length)
    spec = with_defaults_of(spec, task, network, device)
    roles = task.roles(network)
    files = inspect_data(sources["dataset"], roles, spec.data)
    sample = _Sample(task, network, processor, roles)
    own, ratio, batch = sample.look(sources["dataset"], files, spec.data, own=True)
    total = min(files.train_split.rows, spec.data.max_examples or files.train_split.rows)
    total, tested = round(total * ratio), round(files.test_split.rows * ratio)
    held_out = tested or max(1, round(total * spec.evaluation.holdout))
    trained = total if tested else total - held_out
    pool, test, other = math.ceil(held_out / 2), held_out // 2, own
    if "downstream" in sources:
        downstream = inspect_data(sources["downstream"], roles, spec.downstream_data)
        other, ratio, _ = sample.look(sources["downstream"], downstream, spec.downstream_data, own=not task.new_head)
        pool, test = (round(split.rows * ratio) for split in (downstream.train_split, downstream.test_split))
        if not test:
            pool, test = math.ceil(pool / 2), pool // 2
    with torch.device("meta"), bounded_construction():
        skeleton = network.skeleton()
    batch_norm = has_batch_norm(skeleton)
    batch_size = spec.forgetting.batch_size or 1
    size = min(batch_size, spec.forgetting.micro_batch_size or batch_size)
    named = [(source, name) for source in sources.values() for name in source.names()]
    return Workload(
        spec, network.library, count(skeleton, sample.batch_of(batch, size)),
        _of(own, trained), _of(own, held_out), _of(other, pool), _of(other, test), batch_norm,
        sum(model.size(name) for name in model.names() if name.endswith(".safetensors")),
        sum(source.size(name) for source, name in named), len(named), task.defaults.evaluation_batch_size,
    )  # fmt: skip


def _of(examples: Examples, count: int) -> Examples:
    return Examples(count, examples.pixels, examples.characters, examples.each_bytes)


class _Sample:
    """A few rows as the task makes examples of them."""

    def __init__(self, task: Task, network: Network, processor: Any, roles: Sequence[Role]) -> None:
        self._task, self._network, self._processor, self._roles = task, network, processor, roles

    def look(
        self, source: Source, files: DataFiles, settings: DataSettings, *, own: bool
    ) -> tuple[Examples, float, list[Batch]]:
        """What an example is like, how many a row makes, and a few."""
        rows = self._rows(source, files)
        to_model = match_labels(files, self._network, settings.labels) if own else np.arange(len(files.classes))
        labelled = self._task.examples(rows, to_model, self._processor)
        shown = self._items(labelled)
        pixels = characters = 0.0
        for role in self._roles:
            if role.name not in rows.column_names:
                continue
            if role.kind == "image":
                sizes = [read_image(value, index).size for index, value in enumerate(rows[:8][role.name])]
                pixels += float(np.mean([width * height for width, height in sizes]))
            elif role.kind in ("text", "words"):
                texts = [value if isinstance(value, str) else " ".join(value) for value in rows[role.name]]
                characters += float(np.mean([len(text) for text in texts]))
        each = float(np.mean([sum(value.nbytes for value in item.values()) for item in shown]))
        ratio = len(labelled.labels) / len(rows)
        return Examples(0, pixels, characters / max(ratio, 1e-9), each), ratio, shown

    def _items(self, labelled: Labelled) -> list[Batch]:
        items: Any = labelled.items
        return [items[index] for index in range(min(len(labelled.labels), _SAMPLE))]

    def batch_of(self, items: list[Batch], size: int) -> dict[str, Tensor]:
        """A batch of two that is as long as those of ``size`` are on average."""
        generator = random.Random(0)  # noqa: S311 - no secret
        collate = self._task.collate(self._processor, training=True)
        if "input_ids" in items[0]:
            lengths = [len(item["input_ids"]) for item in items]
            longest = np.mean([max(generator.choices(lengths, k=size)) for _ in range(20)])
            by_length = sorted(items, key=lambda item: abs(len(item["input_ids"]) - float(longest)))
            return collate([by_length[0], by_length[0]])
        return collate([items[0], items[-1]])

    def _rows(self, source: Source, files: DataFiles) -> datasets.Dataset:
        split = files.train_split
        if files.format == "imagefolder":
            return self._images(source, split)
        present = [role for role in self._roles if role.name in files.columns]
        number = {name: index for index, name in enumerate(files.classes)}
        name, batches = split.files[0], []
        with source.open(name) as stream:
            columns = [files.columns[role.name] for role in present]
            wanted = islice(read_columns(stream, name, source.size(name), columns), 20)
            for batch in wanted:
                batches.append(as_roles(batch, present, name, number))
                if sum(batch.num_rows for batch in batches) >= 4 * _SAMPLE:
                    break
        return datasets.Dataset(pa.Table.from_batches(batches))

    def _images(self, source: Source, split: Split) -> datasets.Dataset:
        paired = any(role.name == "mask" for role in self._roles)
        group = 2 if paired else 1
        count = len(split.files) // group
        chosen = np.unique(np.linspace(0, count - 1, min(count, 8)).astype(int))

        def read(name: str) -> bytes:
            with source.open(name) as stream:
                return stream.read()

        columns: dict[str, list[Any]] = {"image": [read(split.files[group * index]) for index in chosen]}
        if paired:
            columns["mask"] = [read(split.files[2 * index + 1]) for index in chosen]
        elif len(split.labels):
            columns["label"] = split.labels[chosen].tolist()
        return datasets.Dataset.from_dict(columns)
