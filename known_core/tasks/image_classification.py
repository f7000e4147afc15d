"""Image classification: a transformers or registered classifier, an imagefolder or parquet data set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.reader import WEIGHTS, read_headers, wrapper_prefix
from known_core.checkpoint.source import open_source, unpack
from known_core.errors import KnownError
from known_core.files import read_json, write_json
from known_core.forgetting import nested_subsets
from known_core.spec import JobSpec
from known_core.tasks.base import Labelled, Scores
from known_core.tasks.classifiers import Classifier, check_processor, classifier_for, read_config
from known_core.tasks.images import ImageFiles, LabelledImages, inspect_images, load_images

_EVALUATION_BATCH = 256
_DATA_FILE = "data.parquet"  # the name a single uploaded file gets


class ImageClassification:
    """See :class:`known_core.tasks.base.Task`."""

    def inspect(self, spec: JobSpec) -> dict[str, Any]:
        with _pointing_at("/model"):
            model = open_source(spec.model, single_file_name=WEIGHTS)
            config = read_config(model, spec.config)
            classifier = classifier_for(config)
            headers = read_headers(model)
            stored = {name: info for header in headers.values() for name, info in header.tensors.items()}
            prefix = wrapper_prefix(stored)
            classifier.check({name.removeprefix(prefix): info.shape for name, info in stored.items()})
            check_processor(model, config)
        summary: dict[str, Any] = {
            "task": spec.task,
            "architecture": config.get("architecture") or (config.get("architectures") or [config["model_type"]])[0],
            "parameters": sum(info.numel for info in stored.values()),
        }
        with _pointing_at("/dataset"):
            files = inspect_images(open_source(spec.dataset, single_file_name=_DATA_FILE))
            match_labels(files.classes, classifier)
            _check_sizes(files, spec)
        summary["dataset"] = {"format": files.format, "train": files.train, "test": files.test}
        if spec.downstream is not None:
            with _pointing_at("/evaluation/downstream"):
                downstream = inspect_images(open_source(spec.downstream, single_file_name=_DATA_FILE))
                _check_downstream(downstream, spec)
            summary["downstream"] = {
                "format": downstream.format, "train": downstream.train, "test": downstream.test
            }  # fmt: skip
        return summary

    def unpack(self, spec: JobSpec, folder: Path) -> None:
        with _pointing_at("/model"):
            unpack(spec.model, folder / "model", single_file_name=WEIGHTS)
        if spec.config is not None:
            write_json(folder / "model" / "config.json", spec.config)
        with _pointing_at("/dataset"):
            unpack(spec.dataset, folder / "dataset", single_file_name=_DATA_FILE)
        if spec.downstream is not None:
            with _pointing_at("/evaluation/downstream"):
                unpack(spec.downstream, folder / "downstream", single_file_name=_DATA_FILE)

    def open(self, spec: JobSpec, folder: Path, cache: Path) -> "OpenImageClassification":
        return OpenImageClassification(spec, folder, cache)


class OpenImageClassification:
    """See :class:`known_core.tasks.base.OpenTask`."""

    def __init__(self, spec: JobSpec, folder: Path, cache: Path) -> None:
        model_folder = folder / "model"
        self._classifier = classifier_for(read_json(model_folder / "config.json"))
        preprocess = self._classifier.preprocessor(model_folder)
        self._batch_size = spec.forgetting.batch_size

        files, (train, test) = _load(folder / "dataset", preprocess, cache / "dataset")
        self._files = files
        to_model = match_labels(files.classes, self._classifier)
        for part in (train, test):
            if part is not None:
                part.labels = to_model[part.labels]
        if test is None:
            held_out, kept = _stratified_split(train.labels, spec.evaluation.holdout, spec.forgetting.seed)
            self.d0 = _part(train, kept)
            self.evaluation = _part(train, held_out)
        else:
            self.d0 = Labelled(train, train.labels)
            self.evaluation = Labelled(test, test.labels)
        self._has_test_split = test is not None

        self._downstream_files: ImageFiles | None = None
        if spec.downstream is None:
            pool, rest = _stratified_split(self.evaluation.labels, 0.5, spec.forgetting.seed)
            self.probe_pool = _part(self.evaluation.items, pool, self.evaluation.labels)
            self.probe_test = _part(self.evaluation.items, rest, self.evaluation.labels)
            self._probe_classes = self._classifier.num_labels
        else:
            files, (train, test) = _load(folder / "downstream", preprocess, cache / "downstream")
            self._downstream_files = files
            self._probe_classes = len(files.classes)
            if test is None:
                rest, pool = _stratified_split(train.labels, 0.5, spec.forgetting.seed)
                self.probe_pool, self.probe_test = _part(train, pool), _part(train, rest)
            else:
                self.probe_pool, self.probe_test = Labelled(train, train.labels), Labelled(test, test.labels)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        return self._classifier.load(checkpoint)

    def load_for_probe(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        return self._classifier.load_with_new_head(checkpoint, self._probe_classes, seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        self._classifier.save(model, folder)

    @torch.inference_mode()
    def score(self, model: nn.Module, items: Dataset[Any], device: torch.device) -> Scores:
        model.to(device).eval()
        correct, loss = [], []
        for batch in DataLoader(items, batch_size=_EVALUATION_BATCH):
            labels = batch["labels"].to(device)
            logits = model(batch["pixel_values"].to(device))["logits"].float()
            correct.append((logits.argmax(1) == labels).cpu().numpy())
            loss.append(cross_entropy(logits, labels, reduction="none").cpu().numpy())
        return Scores(np.concatenate(correct).astype(np.float64), np.concatenate(loss).astype(np.float64))

    def inputs(self, device: torch.device) -> Iterator[Tensor]:
        for batch in DataLoader(self.d0.items, batch_size=self._batch_size):
            yield batch["pixel_values"].to(device)

    def summary(self) -> dict[str, Any]:
        return {
            "d0_examples": len(self.d0.labels),
            "evaluation_examples": len(self.evaluation.labels),
            "evaluation_source": "test split" if self._has_test_split else "held out of the training data",
            "downstream_source": "given" if self._downstream_files else "half of the evaluation examples, new head",
            "probe_pool_examples": len(self.probe_pool.labels),
            "probe_test_examples": len(self.probe_test.labels),
        }


def match_labels(classes: Sequence[str], classifier: Classifier) -> NDArray[np.int64]:
    """For each class of the data, the index of the model's output it is: by name where the model has names.

    Raises:
        KnownError: ``labels_mismatch``.
    """
    names = classifier.label_names
    if names is None:
        if len(classes) != classifier.num_labels:
            raise KnownError(
                "labels_mismatch",
                f"the data set has {len(classes)} classes, the model's head has {classifier.num_labels}",
                "Give the data the model was trained on, or a config.json whose labels name its classes.",
            )
        return np.arange(len(classes))
    lost = [name for name in classes if name not in names]
    if lost:
        raise KnownError(
            "labels_mismatch",
            f"the model has no label {lost[:5]}; its labels are {names[:20]}",
            "Rename the class folders to the labels in the model's config.json.",
        )
    return np.array([names.index(name) for name in classes])


@contextmanager
def _pointing_at(pointer: str) -> Iterator[None]:
    """Errors inside point at a field of the request, unless they say a field themselves."""
    try:
        yield
    except KnownError as error:
        error.at(pointer)
        raise


def _load(
    folder: Path, preprocess: Any, cache: Path
) -> tuple[ImageFiles, tuple[LabelledImages, LabelledImages | None]]:
    files = inspect_images(open_source(folder, single_file_name=_DATA_FILE))
    return files, load_images(folder, files, preprocess, cache)


def _part(items: Dataset[Any], indices: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> Labelled:
    if labels is None:
        assert isinstance(items, LabelledImages)
        labels = items.labels
    return Labelled(Subset(items, indices.tolist()), labels[indices])


def _stratified_split(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sorted index lists; the first has about ``share`` of each class, at least one of each that has two."""
    generator = np.random.default_rng([seed, 1])
    first = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        first.append(members[:count])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def _check_sizes(files: ImageFiles, spec: JobSpec) -> None:
    small = {name: count for name, count in files.train.items() if count < 2}
    if small:
        raise KnownError(
            "dataset_unusable", f"classes with a single image: {sorted(small)[:10]}", "Give at least two a class."
        )
    share = 1.0 if files.test else 1 - spec.evaluation.holdout
    labels = np.repeat(np.arange(len(files.train)), [max(1, int(count * share)) for count in files.train.values()])
    nested_subsets(labels, spec.forgetting.rate, spec.forgetting.states, spec.forgetting.seed)
    if spec.downstream is None:
        evaluation = sum(files.test.values()) if files.test else len(labels) * spec.evaluation.holdout
        if evaluation < 4 * len(files.train):
            raise KnownError(
                "dataset_unusable",
                f"about {evaluation:.0f} examples are left to evaluate {len(files.train)} classes on",
                "Add a test split, raise evaluation.holdout, or give evaluation.downstream.",
            )


def _check_downstream(files: ImageFiles, spec: JobSpec) -> None:
    small = {name: count for name, count in files.train.items() if count < 2}
    if small:
        raise KnownError(
            "dataset_unusable", f"classes with a single image: {sorted(small)[:10]}", "Give at least two a class."
        )
