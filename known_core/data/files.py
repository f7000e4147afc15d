"""Which files of a data set are which split, and what a task reads of them."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from huggingface_hub import DatasetCard
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.spec import DataSettings

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "eval", "dev")
_CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Role:
    """What a task reads of a row.

    Args:
        name: such as "image"; the task's rows have it as a column name.
        kind: "image" (the bytes of one), "label" (a class), "text", "words" (a list of texts), "tags" (a list of
            classes, one a word).
        columns: names that are tried in this order where the user names none.
    """

    name: str
    kind: Literal["image", "label", "text", "words", "tags"]
    columns: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Split:
    """The files of a split in the order they are read.

    ``labels`` are (N,) indices into the classes, one a row; empty where the task's rows have no label.
    """

    files: list[str]
    rows: int
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class DataFiles:
    """What a data set holds. ``test_split`` is empty where there is none.

    ``columns`` are the column of each role, for example {"image": "image.bytes", "label": "label"}; in an image folder
    the folder's name is the label.
    """

    format: str
    columns: dict[str, str]
    classes: list[str]
    train_split: Split
    test_split: Split

    @property
    def train(self) -> dict[str, int]:
        """Rows of each class that has any."""
        return self._count(self.train_split)

    @property
    def test(self) -> dict[str, int]:
        return self._count(self.test_split)

    def _count(self, split: Split) -> dict[str, int]:
        labels, counts = np.unique(split.labels, return_counts=True)
        return {self.classes[label]: count for label, count in zip(labels.tolist(), counts.tolist(), strict=True)}

    def summary(self) -> dict[str, Any]:
        """What a person should see before they start."""
        facts: dict[str, Any] = {
            "format": self.format,
            "columns": self.columns,
            "train_examples": self.train_split.rows,
            "test_examples": self.test_split.rows,
        }
        if len(self.train_split.labels):
            facts |= {"train": self.train, "test": self.test}
        elif self.classes:
            facts["classes"] = self.classes
        return facts


def unusable(message: str, hint: str) -> KnownError:
    return KnownError("dataset_unusable", message, hint)


def split_names(names: Iterable[str], source: Source, settings: DataSettings) -> tuple[list[str], list[str]]:
    """The files to train on and those to evaluate on.

    The data set's card decides where it declares its configurations (the Hub's ``configs`` in README.md), else the last
    word of a path that names a split; a file that names none is for training.

    Raises:
        KnownError: ``dataset_unusable`` where the config or split asked for is not there.
    """
    names = list(names)
    declared = _declared(source, names, settings.config)
    if declared is None and settings.config is not None:
        names = [
            name for name in names if settings.config in re.split(r"[/.]", name) or settings.config in name.split("-")
        ]
        if not names:
            raise unusable(f"no file belongs to the config {settings.config!r}", "Name a folder of the data set.")
    groups = declared if declared is not None else _by_words(names)
    train = _chosen(groups, settings.split, TRAIN, "split")
    if not train and settings.split is None:
        train = next(iter(groups.values()), []) if len(groups) == 1 else []
    test = [name for name in _chosen(groups, settings.evaluation_split, TEST, "evaluation_split") if name not in train]
    return train, test


def _chosen(groups: dict[str, list[str]], wish: str | None, words: Sequence[str], field: str) -> list[str]:
    if wish is None:
        return [name for split, files in groups.items() if split.lower() in words for name in files]
    alike = TRAIN if wish in TRAIN else TEST if wish in ("val", "valid", "validation") else ()
    found = groups.get(wish) or next((groups[word] for word in alike if word in groups), None)
    if found is None:
        raise unusable(f"the data set has no {field} {wish!r}", f"Its splits: {sorted(groups)[:20]}.")
    return found


def _by_words(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        words = [word for word in re.split("[^a-z]+", name.lower()) if word in (*TRAIN, *TEST)]
        groups.setdefault(words[-1] if words else "train", []).append(name)
    return groups


def _declared(source: Source, names: Sequence[str], config: str | None) -> dict[str, list[str]] | None:
    """The splits that the card declares, or None where it declares none."""
    if _CARD not in source.names() or source.size(_CARD) > _MAX_CARD_BYTES:
        return None
    with source.open(_CARD) as stream:
        text = stream.read().decode("utf-8", "replace")
    try:
        metadata: dict[str, Any] = DatasetCard(text, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # a stranger's YAML: what it cannot say, file names can
        return None
    configs = [entry for entry in metadata.get("configs") or [] if isinstance(entry, dict) and "data_files" in entry]
    if not configs:
        return None
    named = {str(entry.get("config_name", "default")): entry for entry in configs}
    default = next((name for name, entry in named.items() if entry.get("default")), next(iter(named)))
    if config is None and len(named) > 1 and not any(entry.get("default") for entry in named.values()):
        raise unusable(f"the data set has several configs: {sorted(named)[:20]}", 'Name one: "config".')
    if config is not None and config not in named:
        raise unusable(f"the data set has no config {config!r}", f"Its configs: {sorted(named)[:20]}.")
    data_files = named[config or default]["data_files"]
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        described = entry if isinstance(entry, dict) else {"path": entry}
        split, paths = str(described.get("split", "train")), described.get("path")
        patterns = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        matching = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
        splits.setdefault(split, []).extend(matching)
    return splits


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern.replace("**/", ""))
