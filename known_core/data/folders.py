"""Images in folders: the folder's name is the class, or a second image of the same name is the mask."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import datasets
import numpy as np

from known_core.data.files import TEST, DataFiles, Role, Split, unusable

FORMATS = {  # Pillow opens no others
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
_MASKS = ("masks", "mask", "annotations", "labels", "segmentations")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in FORMATS


def inspect_folders(names: Sequence[str], roles: Sequence[Role]) -> DataFiles:
    """The images of a data set in its two splits: ``<class>/<image>`` or ``images/<image>`` with ``masks/<image>``."""
    if any(role.name == "mask" for role in roles):
        return _inspect_pairs(names)
    train: list[PurePosixPath] = []
    test: list[PurePosixPath] = []
    for path in map(PurePosixPath, names):
        if is_image(path.name) and len(path.parts) >= 2:
            (test if path.parts[0].lower() in TEST and len(path.parts) >= 3 else train).append(path)
    classes = sorted({path.parent.name for path in train})
    unknown = {path.parent.name for path in test}.difference(classes)
    if unknown:
        raise unusable(f"the test split has classes that train lacks: {sorted(unknown)[:10]}", "Rename the folders.")
    number = {name: index for index, name in enumerate(classes)}

    def split(paths: list[PurePosixPath]) -> Split:
        labels = np.array([number[path.parent.name] for path in paths], dtype=np.int64)
        return Split([path.as_posix() for path in paths], len(paths), labels)

    return DataFiles("imagefolder", {}, classes, split(train), split(test))


def _inspect_pairs(names: Sequence[str]) -> DataFiles:
    masks: dict[tuple[str, str], str] = {}
    images: list[PurePosixPath] = []
    for path in map(PurePosixPath, names):
        if not is_image(path.name) or len(path.parts) < 2:
            continue
        if path.parent.name.lower() in _MASKS:
            masks[path.parent.parent.as_posix(), path.stem] = path.as_posix()
        else:
            images.append(path)
    files: dict[bool, list[str]] = {False: [], True: []}
    for path in images:
        mask = masks.get((path.parent.parent.as_posix(), path.stem))
        if mask is None:
            raise unusable(
                f"{path.as_posix()} has no mask of the same name",
                "Lay them out as images/<name>.jpg, masks/<name>.png.",
            )
        files[path.parts[0].lower() in TEST] += [path.as_posix(), mask]
    none = np.zeros(0, dtype=np.int64)
    train, test = (Split(files[is_test], len(files[is_test]) // 2, none) for is_test in (False, True))
    return DataFiles("imagefolder", {}, [], train, test)


def read_folder(folder: Path, split: Split, roles: Sequence[Role], files: DataFiles) -> datasets.Dataset:
    """Paths of images, one column a role; the label is a number."""
    paths = [str(folder / name) for name in split.files]
    if any(role.name == "mask" for role in roles):
        return datasets.Dataset.from_dict({"image": paths[::2], "mask": paths[1::2]})
    return datasets.Dataset.from_dict({"image": paths, "label": split.labels.tolist()})
