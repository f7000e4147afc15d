"""Labelled images: an imagefolder or parquet, inspected without unpacking, then read through the datasets library."""

import io
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.tasks.classifiers import Preprocess

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "eval")
_CACHE_BYTES = 1 << 30  # preprocessed images kept in memory up to this size
_MAX_PIXELS = 100_000_000

datasets.disable_progress_bars()


@dataclass(frozen=True)
class ImageFiles:
    """What a data set holds. ``train`` and ``test`` map class names to counts; ``test`` is empty without a split."""

    format: str
    classes: list[str]
    train: dict[str, int]
    test: dict[str, int]
    train_files: list[str]
    test_files: list[str]
    columns: tuple[str, str] = ("image", "label")


def inspect_images(source: Source) -> ImageFiles:
    """Classes and counts, from file names or from the parquet label column alone.

    Raises:
        KnownError: ``dataset_unusable`` when it is empty, has one class, or has no readable layout;
            ``dataset_script_refused`` when it holds code.
    """
    names = source.names()
    if scripts := [name for name in names if name.endswith(".py")]:
        raise KnownError("dataset_script_refused", f"the data set holds code: {scripts[0][:120]}", "Remove it.")
    parquet = [name for name in names if name.endswith(".parquet")]
    files = _inspect_parquet(source, parquet) if parquet else _inspect_folders(names)
    if not files.train:
        raise _unusable(
            f"no images were found among {len(names)} files",
            "Lay images out as <class>/<image> or train/<class>/<image> (png, jpg, webp, bmp, gif, tiff), or give "
            "parquet with the columns image and label.",
        )
    if len(files.train) < 2:
        raise _unusable(f"every image is of the class {next(iter(files.train))!r}", "Give at least two classes.")
    return files


def _unusable(message: str, hint: str) -> KnownError:
    return KnownError("dataset_unusable", message, hint)


def _inspect_folders(names: Sequence[str]) -> ImageFiles:
    splits: dict[str, list[PurePosixPath]] = {"train": [], "test": []}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() in _EXTENSIONS and len(path.parts) >= 2:
            top = path.parts[0].lower()
            splits["test" if top in _TEST and len(path.parts) >= 3 else "train"].append(path)
    counts = {
        split: dict(sorted(Counter(path.parent.name for path in paths).items())) for split, paths in splits.items()
    }
    unknown = counts["test"].keys() - counts["train"].keys()
    if unknown:
        raise _unusable(f"the test split has classes that train lacks: {sorted(unknown)[:10]}", "Rename the folders.")
    return ImageFiles(
        "imagefolder", sorted(counts["train"]), counts["train"], counts["test"],
        [str(path) for path in splits["train"]], [str(path) for path in splits["test"]],
    )  # fmt: skip


def _inspect_parquet(source: Source, names: Sequence[str]) -> ImageFiles:
    test = [name for name in names if any(word in PurePosixPath(name).name.lower() for word in _TEST)]
    train = [name for name in names if name not in test]
    columns: tuple[str, str] = ("image", "label")
    declared: list[str] | None = None
    values: dict[str, list[Any]] = {"train": [], "test": []}
    for split, files in (("train", train), ("test", test)):
        for name in files:
            with source.open(name) as stream:
                try:
                    file = pq.ParquetFile(io.BytesIO(stream.read()) if not stream.seekable() else stream)
                    columns, declared = _parquet_columns(file.schema_arrow)
                    values[split] += file.read(columns=[columns[1]]).column(0).to_pylist()
                except pa.ArrowException as error:
                    raise _unusable(
                        f"{name} is not readable parquet: {error}", "Give an imagefolder zip or a parquet file."
                    ) from error
    if any(value is None or isinstance(value, (float, bool)) for part in values.values() for value in part):
        raise _unusable(f"the column {columns[1]!r} has empty or fractional labels", "Use integers or strings.")
    if declared is None:
        distinct = set(values["train"]) | set(values["test"])
        if any(isinstance(value, int) for value in distinct):
            low, high = min(distinct, default=0), max(distinct, default=0)
            if low < 0 or high > 100_000:
                raise KnownError("label_out_of_range", f"labels run from {low} to {high}", "Number classes from 0.")
            declared = [str(value) for value in range(high + 1)]
        else:
            declared = sorted(distinct)
    names_of = [
        {value: declared[value] if isinstance(value, int) and 0 <= value < len(declared) else value for value in part}
        for part in values.values()
    ]
    for mapping in names_of:
        for value, label in mapping.items():
            if label not in declared:
                raise KnownError(
                    "label_out_of_range", f"label {str(value)[:80]!r} is not one of {len(declared)} classes", ""
                )
    train_counts, test_counts = (
        dict(sorted(Counter(mapping[value] for value in part).items()))
        for mapping, part in zip(names_of, values.values(), strict=True)
    )
    return ImageFiles("parquet", declared, train_counts, test_counts, train, test, columns)


def _parquet_columns(schema: pa.Schema) -> tuple[tuple[str, str], list[str] | None]:
    image = next((name for name in ("image", "img") if name in schema.names), None)
    label = next((name for name in ("label", "labels") if name in schema.names), None)
    if image is None or label is None:
        raise _unusable(f"the parquet columns are {schema.names[:20]}", "Name them image and label.")
    names: list[str] | None = None
    if b"huggingface" in (schema.metadata or {}):
        features = json.loads(schema.metadata[b"huggingface"]).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")
    return (image, label), names


class LabelledImages(Dataset[dict[str, Tensor]]):
    """Images and labels as a network takes them; preprocessed once and kept in memory where they fit.

    Args:
        rows: a datasets.Dataset with an image column.
        labels: (N,) int64 labels.
        column: the image column.
        preprocess: images to (N, C, H, W) float32.
    """

    def __init__(self, rows: datasets.Dataset, labels: NDArray[np.int64], column: str, preprocess: Preprocess) -> None:
        self.labels = labels
        self._rows, self._column, self._preprocess = rows, column, preprocess
        self._pixels: Tensor | None = None
        self._cached = np.zeros(len(labels), dtype=bool)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Items of a whole batch at once: torch's DataLoader asks for them this way."""
        pixels = self._batch(np.asarray(indices))
        return [
            {"pixel_values": image, "labels": torch.tensor(int(self.labels[index]))}
            for image, index in zip(pixels, indices, strict=True)
        ]

    def _batch(self, indices: NDArray[np.int64]) -> Tensor:
        missing = indices[~self._cached[indices]]
        if self._pixels is None or len(missing):
            wanted = missing if self._pixels is not None else indices
            pixels = self._preprocess(self._decode(wanted))
            if self._pixels is None:
                if pixels[0].nbytes * len(self) > _CACHE_BYTES:
                    return pixels
                self._pixels = torch.empty(len(self), *pixels.shape[1:])
            self._pixels[wanted] = pixels
            self._cached[wanted] = True
        return self._pixels[indices]

    def _decode(self, indices: NDArray[np.int64]) -> list[Image.Image]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                images: list[Image.Image] = self._rows[indices.tolist()][self._column]
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise KnownError("image_limit", str(error), f"Images may have {_MAX_PIXELS} pixels.") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise _unusable(f"an image cannot be decoded: {error}", "Remove or repair broken images.") from error
        return images


def load_images(
    folder: Path, files: ImageFiles, preprocess: Preprocess, cache: Path
) -> tuple[LabelledImages, LabelledImages | None]:
    """The train and test splits of an unpacked data set; labels index ``files.classes``.

    Args:
        folder: where the files lie.
        cache: where the datasets library may keep its Arrow files.
    """
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    splits = {"train": files.train_files, **({"test": files.test_files} if files.test_files else {})}
    data_files = {split: [str(folder / name) for name in names] for split, names in splits.items()}
    loaded = datasets.load_dataset(files.format, data_files=data_files, cache_dir=str(cache))
    image, label = files.columns
    number = {name: index for index, name in enumerate(files.classes)}
    parts = []
    for split in splits:
        rows = loaded[split]
        feature = rows.features[label]
        if isinstance(feature, datasets.ClassLabel):
            lookup = [number[name] for name in feature.names]
            labels = np.array([lookup[value] for value in rows[label]], dtype=np.int64)
        else:
            labels = np.array(
                [value if isinstance(value, int) else number[value] for value in rows[label]], dtype=np.int64
            )
        parts.append(LabelledImages(rows.cast_column(image, datasets.Image()), labels, image, preprocess))
    return parts[0], parts[1] if len(parts) > 1 else None
