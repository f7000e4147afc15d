"""Images in folders: the folder's name is the class, or a second image of the same name is the mask."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.data.files import DataFiles, Groups, Role, Split, choose_splits, family_of, unusable
from known_core.spec import DataSettings

FORMATS = {  # Pillow opens no others
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "annotations", "labels", "segmentations")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in FORMATS


def is_masked(roles: Sequence[Role]) -> bool:
    """Whether each image comes with a second one."""
    return any(role.name == "mask" for role in roles)


def inspect_folders(source: Source, roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    """The images of a data set in its splits: ``<class>/<image>`` or ``images/<image>`` with ``masks/<image>``.

    Raises:
        KnownError: ``dataset_unusable``.
    """
    names = [name for name in source.names() if is_image(name) and "/" in name]
    masked = is_masked(roles)
    splits = choose_splits(names, source, settings, partial(_by_folder, classed=not masked))
    name, test = next(((name, files) for name, files in splits.evaluation.items() if files), ("", []))
    if masked:
        return _inspect_pairs(source, splits.train_name, splits.train, name, test)
    classes = sorted({PurePosixPath(path).parent.name for path in splits.train})
    if unknown := {PurePosixPath(path).parent.name for path in test}.difference(classes):
        raise unusable(f"the test split has classes that train lacks: {sorted(unknown)[:10]}", "Rename the folders.")
    number = {name: index for index, name in enumerate(classes)}

    def split(name: str, files: list[str]) -> Split:
        labels = np.array([number[PurePosixPath(path).parent.name] for path in files], dtype=np.int64)
        return _split(source, name, files, len(files), labels)

    return DataFiles("imagefolder", {}, classes, split(splits.train_name, splits.train), split(name, test))


def _split(source: Source, name: str, files: list[str], rows: int, labels: NDArray[np.int64]) -> Split:
    return Split(files, rows, labels, name, sum(source.size(file) for file in files))


def _by_folder(names: Sequence[str], *, classed: bool) -> Groups:
    """Images by the folder that names their split; where ``classed``, the innermost folder is the class.

    Images that lie in the folder of a split themselves, where others lie in folders of classes below one, have no class
    and are left out.
    """
    groups: Groups = {}
    loose: list[str] = []
    named = False
    for name in names:
        folders = name.split("/")[:-1]
        family = next(filter(None, map(_split_called, folders[:-1] if classed else folders)), None)
        named = named or family is not None
        if classed and family is None and _split_called(folders[-1]):
            loose.append(name)
        else:
            groups.setdefault(family or "train", []).append(name)
    if not named and loose:  # classes that are called like splits
        groups.setdefault("train", []).extend(loose)
    return groups


def _split_called(folder: str) -> str | None:
    return family_of(folder) if folder.isalpha() else None


def _inspect_pairs(source: Source, train_name: str, train: list[str], test_name: str, test: list[str]) -> DataFiles:
    none = np.zeros(0, dtype=np.int64)

    def split(name: str, files: list[str]) -> Split:
        paired = _pairs(files)
        return _split(source, name, paired, len(paired) // 2, none)

    return DataFiles("imagefolder", {}, [], split(train_name, train), split(test_name, test))


def _pairs(names: Sequence[str]) -> list[str]:
    """Each image and then its mask: of the same path but for the folder that says what they are, and the suffix."""
    masks: dict[tuple[str, ...], str] = {}
    images: list[tuple[tuple[str, ...], str]] = []
    for name in names:
        folders = name.split("/")[:-1]
        lower = [folder.lower() for folder in folders]
        said = next((word for word in lower if word in _MASKS), None)
        marker = said or next((word for word in lower if word in _IMAGES), None)
        if marker:
            folders.pop(lower.index(marker))
        key = (*folders, PurePosixPath(name).stem)
        if said:
            masks[key] = name
        else:
            images.append((key, name))
    if lost := [name for key, name in images if key not in masks]:
        raise unusable(
            f"{lost[0]} has no mask of the same name", "Lay them out as images/<name>.jpg, masks/<name>.png."
        )
    return [file for key, name in images for file in (name, masks[key])]


def read_folder(folder: Path, split: Split, roles: Sequence[Role]) -> datasets.Dataset:
    """Paths of images, one column a role; the label is a number."""
    paths = [str(folder / name) for name in split.files]
    if is_masked(roles):
        return datasets.Dataset.from_dict({"image": paths[::2], "mask": paths[1::2]})
    return datasets.Dataset.from_dict({"image": paths, "label": split.labels.tolist()})
