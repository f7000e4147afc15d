"""A task with a job's model and data loaded."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from known_core.calibration import has_batch_norm
from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import FolderSource, Layered
from known_core.data import DataFiles, inspect_data, read_data, sample_of
from known_core.memory import halving
from known_core.models.features import HEAD, FeatureNetwork
from known_core.models.opening import open_network
from known_core.spec import DataSettings, JobSpec
from known_core.tasks.base import Batch, Collate, Fits, Labelled, Scores, Task, match_labels
from known_core.team import Rank


class OpenTask:
    """The splits of a job, its network, and how both are scored.

    Args:
        folder: what :func:`known_core.inputs.lay_out` left there.
        cache: where rows are kept, memory-mapped.
        rank: of a process that trains with others; where it says so, each of them holds a part of the network.
    """

    d0: Labelled  # the training data, evaluation examples taken out
    evaluation: Labelled  # examples of D_0's own task that the stages never train on
    probe_pool: Labelled  # downstream examples to fine-tune on
    probe_test: Labelled  # downstream examples to measure on

    _head = "given"

    def __init__(self, task: Task, spec: JobSpec, folder: Path, cache: Path, rank: Rank | None = None) -> None:
        self._sharded = rank if rank is not None and rank.sharded else None
        model, base_folder = FolderSource(folder / "model"), folder / "base"
        base = FolderSource(base_folder) if base_folder.is_dir() else None
        self.task = task
        self.network = open_network(task.network, model, None, base, base_folder)
        self._processor = task.processor(self.network, Layered(model, base), spec.forgetting.max_length)
        seed, holdout = spec.forgetting.seed, spec.evaluation.holdout

        self._files, train, test = self._read(folder / "dataset", spec.data, cache / "dataset", seed, own=True)
        if test is None:
            held_out, kept = stratified_split(train.labels, holdout, seed)
            self.d0, self.evaluation = part(train, kept), part(train, held_out)
        else:
            self.d0, self.evaluation = train, test
        self._has_test_split = test is not None

        self._given_downstream = spec.downstream is not None
        if spec.downstream is None:
            pool, rest = stratified_split(self.evaluation.labels, 0.5, seed)
            self.probe_pool, self.probe_test = part(self.evaluation, pool), part(self.evaluation, rest)
            self._probe_classes = self.network.num_labels or len(self._files.classes)
        else:
            files, train, test = self._read(
                folder / "downstream", spec.downstream_data, cache / "downstream", seed, own=False
            )
            self._probe_classes = len(files.classes) or max(part.classes for part in (train, test) if part is not None)
            if test is None:
                rest, pool = stratified_split(train.labels, 0.5, seed)
                self.probe_pool, self.probe_test = part(train, pool), part(train, rest)
            else:
                self.probe_pool, self.probe_test = train, test

    def _read(
        self, folder: Path, settings: DataSettings, cache: Path, seed: int, *, own: bool
    ) -> tuple[DataFiles, Labelled, Labelled | None]:
        """Files and splits; ``own`` where the labels are the model's, not those of a new head."""
        files = inspect_data(FolderSource(folder), self.task.roles(self.network), settings)
        if own or not self.task.new_head:
            to_model = match_labels(files, self.network, settings.labels)
        else:
            to_model = np.arange(len(files.classes))
        train, test = read_data(folder, files, self.task.roles(self.network), cache)
        if settings.max_examples is not None and settings.max_examples < len(train):
            chosen = np.random.default_rng([seed, 3]).choice(len(train), settings.max_examples, replace=False)
            train = train.select(np.sort(chosen))
        if own:
            self._sample = sample_of(train, files, self.task.roles(self.network))
        examples = [self.task.examples(rows, to_model, self._processor) for rows in (train, test) if rows is not None]
        return files, examples[0], examples[1] if test is not None else None

    def prepare(self, start: Checkpoint, kept: Callable[[Callable[[Path], None]], Path], device: torch.device) -> None:
        """Give a network without a head the one that its task fits on D_0 (:class:`~known_core.tasks.base.Fits`).

        Args:
            start: the given weights.
            kept: calls what writes into a folder, unless that was done before; returns the folder.
        """
        if not isinstance(self.task, Fits) or self.network.num_labels:
            return
        fit, batches = self.task.fit, self.batches(self.d0.items, device, self.task.defaults.evaluation_batch_size)

        def work(out: Path) -> None:
            save_file(fit(self.network, start, batches, len(self._files.classes), device), out / HEAD)

        assert isinstance(self.network, FeatureNetwork)
        self.network.take_head(load_file(kept(work) / HEAD))
        self._head = "fitted on the training data by the given weights"

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The network with these weights, float32, on the CPU; a part of it, on the device, where it is spread."""
        if self._sharded is not None:
            from known_core.sharding import load_sharded  # here: it imports much, and few jobs need it

            return load_sharded(self.network, checkpoint, self._sharded)
        return self.network.load(checkpoint)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without data."""
        with torch.device("meta"):
            return self.network.skeleton()

    @property
    def has_batch_norm(self) -> bool:
        return has_batch_norm(self.skeleton)

    def load_for_probe(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """The same, with a new head from the seed where the downstream labels are others."""
        if not self.task.new_head:
            return self.load(checkpoint)
        if self._sharded is not None:
            from known_core.sharding import NewHead, load_sharded

            return load_sharded(self.network, checkpoint, self._sharded, NewHead(self._probe_classes, seed))
        return self.network.load_with_new_head(checkpoint, self._probe_classes, seed)

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        """One state, as safetensors under the names of the original checkpoint."""
        if self._sharded is not None:
            from known_core.sharding import save_sharded

            save_sharded(model, folder, original, self._sharded)
        else:
            self.network.save(model.cpu(), folder, original)

    def collate(self, *, training: bool) -> Collate:
        return self.task.collate(self._processor, training=training)

    def score(self, model: nn.Module, items: Dataset[Any], device: torch.device) -> Scores:
        """How the model does on each item, in order; in smaller batches where memory runs out."""
        if self._sharded is None:
            model.to(device)
        model.eval()
        size = self.task.defaults.evaluation_batch_size
        if self._sharded is not None:  # one process alone cannot go on with less
            return self.measured(model, self.batches(items, device, size))
        return halving(size, lambda size: self.measured(model, self.batches(items, device, size)))

    @torch.no_grad()  # not inference mode: what items and networks (BEiT) keep in memory is trained with later
    def measured(self, model: nn.Module, batches: Iterable[Batch]) -> Scores:
        """How the model, on the batches' device, does on each of their items."""
        correct, loss = [], []
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = model(**inputs)["logits"].float()
            measured = self.task.measure(logits, batch)
            correct.append(measured[0].double().cpu().numpy())
            loss.append(measured[1].double().cpu().numpy())
        return Scores(np.concatenate(correct), np.concatenate(loss))

    def inputs(self, device: torch.device, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """The inputs of D_0 in batches, for calibration."""
        for batch in self.batches(self.d0.items, device, batch_size):
            yield {name: value for name, value in batch.items() if name != "labels"}

    def batches(self, items: Dataset[Any], device: torch.device, batch_size: int) -> Iterator[Batch]:
        """Items in their order, on the device, as the network takes them in evaluation."""
        for batch in DataLoader(items, batch_size=batch_size, collate_fn=self.collate(training=False)):
            yield {name: value.to(device) for name, value in batch.items()}

    def _halved(self) -> str:
        return "half of the evaluation examples" + (", new head" if self.task.new_head else "")

    def summary(self) -> dict[str, Any]:
        """What was understood of the inputs, for the report."""
        return {
            "d0_examples": len(self.d0.labels),
            "evaluation_examples": len(self.evaluation.labels),
            "evaluation_source": "test split" if self._has_test_split else "held out of the training data",
            "downstream_source": "given" if self._given_downstream else self._halved(),
            "probe_pool_examples": len(self.probe_pool.labels),
            "probe_test_examples": len(self.probe_test.labels),
            **({"head": self._head} if isinstance(self.task, Fits) else {}),
            "sample": self._sample,
        }


def part(whole: Labelled, indices: NDArray[np.int64]) -> Labelled:
    return replace(whole, items=Subset(whole.items, indices.tolist()), labels=whole.labels[indices])


def stratified_split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sorted index lists; the first has about ``share`` of each class, at least one of each that has two."""
    generator = np.random.default_rng([seed, 1])
    first = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        first.append(members[:count])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
