"""Which files of a data set are which split, and what a task reads of them."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.spec import DataSettings

Groups = dict[str, list[str]]  # files by the split they belong to

_FAMILIES = {  # the words of a path that name a split
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
}
_FAMILY_OF = {word: family for family, words in _FAMILIES.items() for word in words}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}$")  # how the datasets library names the files of a split
CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_MAX_PATTERNS = 1000  # in a card


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

    ``labels`` are (N,) indices into the classes, one a row; empty where the task's rows have no label. ``name`` is the
    data set's own; ``size`` is the files' bytes.
    """

    files: list[str]
    rows: int
    labels: NDArray[np.int64]
    name: str = ""
    size: int = 0


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
            "splits": {"train": self.train_split.name, "test": self.test_split.name or None},
            "train_examples": self.train_split.rows,
            "test_examples": self.test_split.rows,
            "bytes": self.train_split.size + self.test_split.size,
        }
        if len(self.train_split.labels):
            facts |= {"train": self.train, "test": self.test}
        elif self.classes:
            facts["classes"] = self.classes
        return facts


def unusable(message: str, hint: str) -> KnownError:
    return KnownError("dataset_unusable", message, hint)


@dataclass(frozen=True)
class Splits:
    """The files of a data set by what they are for.

    Args:
        train_name: of the split to train on.
        train: its files; none where there are no files at all.
        evaluation: the splits that could be evaluated on, in the order in which they are preferred.
        wished: whether the user named the one split of ``evaluation``.
    """

    train_name: str = "train"
    train: list[str] = field(default_factory=list)
    evaluation: Groups = field(default_factory=dict)
    wished: bool = False


def family_of(name: str) -> str | None:
    """train, test or validation: what the last word of a path that names a split says."""
    words = [word for word in re.split("[^a-z]+", name.lower()) if word in _FAMILY_OF]
    return _FAMILY_OF[words[-1]] if words else None


def by_words(names: Iterable[str]) -> Groups:
    """Files by the last word of their path that names a split, or else by their name before ``-00000-of-00001``."""
    groups: Groups = {}
    for name in names:
        shard = _SHARD.match(PurePosixPath(name).stem)
        family = family_of(name) or (shard[1] if shard else None)
        groups.setdefault("train" if family in (None, "data") else str(family), []).append(name)
    return groups


def choose_splits(
    names: Iterable[str], source: Source, settings: DataSettings, group: Callable[[Sequence[str]], Groups] = by_words
) -> Splits:
    """The files to train on and those that could be evaluated on.

    The data set's card decides where it declares configurations (the Hub's ``configs`` in README.md), else the files'
    names. Preferred to evaluate on is a split called test, then one called validation. A split of the training data
    itself holds no evaluation files: a share of it is held out.

    Args:
        group: files by split where the card says nothing.

    Raises:
        KnownError: ``dataset_unusable`` where the config or split asked for is not there, or none is for training.
    """
    names = list(names)
    declared = _declared(source, names, settings.config)
    if declared is None and settings.config is not None:
        names = [name for name in names if _is_of_config(name, settings.config)]
        if not names:
            raise unusable(f"no file belongs to the config {settings.config!r}", "Name a folder of the data set.")
    groups = declared if declared is not None else group(names)
    groups = {name: files for name, files in groups.items() if files}
    if declared is not None and names and not groups:
        raise unusable(f"{CARD} declares files that are not there", 'Correct its "configs", or take them out.')
    if not groups:
        return Splits()
    train_name, train = _training(groups, settings.split)
    if settings.evaluation_split is not None:
        wish, files = _wished(groups, settings.evaluation_split, "evaluation_split")
        return Splits(train_name, train, {} if wish == train_name else {wish: _without(train, files)}, wished=True)
    evaluation = (_of_family(groups, family) for family in ("test", "validation"))
    return Splits(train_name, train, {name: _without(train, files) for name, files in evaluation if name != train_name})


def _without(train: list[str], files: list[str]) -> list[str]:
    taken = set(train)
    return [name for name in files if name not in taken]


def _training(groups: Groups, wish: str | None) -> tuple[str, list[str]]:
    if wish is not None:
        return _wished(groups, wish, "split")
    name, train = _of_family(groups, "train")
    if not train and len(groups) == 1:
        name, train = next(iter(groups.items()))
    if not train:
        raise unusable(
            f"none of the splits {sorted(groups)[:20]} is called train", 'Say which was trained on: "split": "...".'
        )
    return name, train


def _of_family(groups: Groups, family: str) -> tuple[str, list[str]]:
    """The splits of a family as one: the Hub's MNLI has validation_matched and validation_mismatched."""
    names = [name for name in groups if family_of(name) == family]
    return "+".join(names), [file for name in names for file in groups[name]]


def _wished(groups: Groups, wish: str, field: str) -> tuple[str, list[str]]:
    if wish in groups:
        return wish, groups[wish]
    name, files = _of_family(groups, _FAMILY_OF.get(wish.lower(), ""))
    if not files:
        raise unusable(f"the data set has no {field} {wish!r}", f"Its splits: {sorted(groups)[:20]}.")
    return name, files


def _is_of_config(name: str, config: str) -> bool:
    """Whether a folder of the path is called so, or the file is, to the end or to a sign that ends a word."""
    path = PurePosixPath(name)
    rest = path.name.removeprefix(config)
    return config in path.parts[:-1] or (rest != path.name and not rest[:1].isalnum())


def _declared(source: Source, names: Sequence[str], config: str | None) -> Groups | None:
    """The splits that the card declares, or None where it declares none."""
    configs = {str(entry["config_name"]): entry for entry in _configs(source)}
    if not configs:
        return None
    if config is not None and config not in configs:
        raise unusable(f"the data set has no config {config!r}", f"Its configs: {sorted(configs)[:20]}.")
    defaults = [name for name, entry in configs.items() if entry.get("default") is True or name == "default"]
    if config is None and len(configs) > 1 and not defaults:
        raise unusable(f"the data set has several configs: {sorted(configs)[:20]}", 'Name one: "config".')
    chosen = configs[config or next(iter(defaults), next(iter(configs)))]
    folder = chosen.get("data_dir")
    prefix = f"{folder.removeprefix('./').strip('/')}/" if isinstance(folder, str) and folder.strip("./") else ""
    if "data_files" not in chosen:
        return by_words(name for name in names if name.startswith(prefix))
    patterns = _patterns(chosen["data_files"])
    if sum(map(len, patterns.values())) > _MAX_PATTERNS:
        raise unusable(f"{CARD} declares more than {_MAX_PATTERNS} patterns", "Use globs, such as data/train-*.")
    return {
        split: [name for name in names if any(_matches(name, prefix + pattern) for pattern in wanted)]
        for split, wanted in patterns.items()
    }


def _configs(source: Source) -> list[dict[str, Any]]:
    """The entries of ``configs`` in the card's header that say where their files are; a stranger's YAML.

    What it cannot say, file names can: whatever is not as it should be counts as not there.
    """
    if CARD not in source.names() or source.size(CARD) > _MAX_CARD_BYTES:
        return []
    with source.open(CARD) as stream:
        text = stream.read().decode("utf-8", "replace").replace("\r\n", "\n")
    header = re.match(r"\ufeff?---\n(.*?\n)---", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except Exception:  # PyYAML has many of its own, and lets some of Python's through
        return []
    entries = metadata.get("configs") if isinstance(metadata, dict) else None
    return [
        {"config_name": "default", **entry}
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and ("data_files" in entry or "data_dir" in entry)
        and isinstance(entry.get("config_name", "default"), str)
    ]


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Patterns by split: from a path, a list of paths or of {split, path}, or a dictionary of paths."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and "path" not in entry:
            described = list(entry.items())
        else:
            described = [
                (entry.get("split", "train"), entry["path"]) if isinstance(entry, Mapping) else ("train", entry)
            ]
        for split, paths in described:
            wanted = [path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str)]
            if isinstance(split, str):
                patterns.setdefault(split, []).extend(wanted)
    return patterns


def _matches(name: str, pattern: str) -> bool:
    """Whether a glob names a file; ``*`` stays within a folder, ``**`` does not."""
    parts = name.split("/")
    reached = {0}  # how many parts the pattern may have used up so far: no backtracking, whatever the pattern
    for part in pattern.removeprefix("./").split("/"):
        if part == "**":
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(parts) and fnmatch.fnmatchcase(parts[at], part)}
    return len(parts) in reached
