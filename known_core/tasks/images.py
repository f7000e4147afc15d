"""Labelled images: an imagefolder or parquet, inspected without unpacking, then read through the datasets library.

Only the datasets library's tables are used, never its builders: those take file names for patterns and URLs, open any
path that a parquet file names, and let its metadata choose how columns are decoded.
"""

import io
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from known_core.checkpoint.header import is_utf8
from known_core.checkpoint.source import Source, expands_too_far
from known_core.errors import KnownError
from known_core.files import atomic_path
from known_core.tasks.classifiers import Preprocess

_FORMATS = {  # Pillow opens no others
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "eval")
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels")
_CACHE_BYTES = 1 << 30  # preprocessed images kept in memory up to this size
_MAX_PIXELS = 100_000_000
_MAX_ROWS = 10_000_000  # a few bytes of parquet can claim 2^31 rows
_MAX_CLASSES = 100_000
_MAX_CLASS_NAME = 255  # characters
_BATCH_ROWS = 100  # rows of parquet in memory at once
# what Pillow itself takes for signs of a broken file, and what its decoders raise
_BROKEN_IMAGE = (OSError, ValueError, EOFError, SyntaxError, IndexError, TypeError, struct.error)


@dataclass(frozen=True)
class Split:
    """The files of a split in the order they are read, and the label of every image in them."""

    files: list[str]
    labels: NDArray[np.int64]  # (N,), indices into the classes


@dataclass(frozen=True)
class ImageFiles:
    """What a data set holds. ``test_split`` is empty where there is none.

    ``image_column`` is the parquet leaf with the images' bytes, for example "image.bytes".
    """

    format: str
    classes: list[str]
    train_split: Split
    test_split: Split
    image_column: str = ""

    @property
    def train(self) -> dict[str, int]:
        """Images of each class that has any."""
        return self._count(self.train_split)

    @property
    def test(self) -> dict[str, int]:
        return self._count(self.test_split)

    def _count(self, split: Split) -> dict[str, int]:
        labels, counts = np.unique(split.labels, return_counts=True)
        return {self.classes[label]: count for label, count in zip(labels.tolist(), counts.tolist(), strict=True)}


def inspect_images(source: Source) -> ImageFiles:
    """Classes and labels, from file names or from the parquet label column alone.

    Raises:
        KnownError: ``dataset_unusable`` when it is empty, has one class, or has no readable layout;
            ``label_out_of_range``; ``row_limit``; ``dataset_script_refused`` when it holds code.
    """
    names = source.names()
    if scripts := [name for name in names if name.endswith(".py")]:
        raise KnownError("dataset_script_refused", f"the data set holds code: {scripts[0][:120]}", "Remove it.")
    parquet = [name for name in names if name.endswith(".parquet")]
    files = _inspect_parquet(source, parquet) if parquet else _inspect_folders(names)
    if not files.train:
        raise _unusable(
            f"no images were found to train on among {len(names)} files",
            "Lay images out as <class>/<image> or train/<class>/<image> (png, jpg, webp, bmp, gif, tiff), or give "
            "parquet with the columns image and label.",
        )
    if broken := [name for name in (*names, *files.classes) if not is_utf8(name)]:
        raise _unusable(f"the name {broken[0][:80]!r} is not valid Unicode", "Rename it.")
    longest = max(files.classes, key=len)
    if len(files.classes) > _MAX_CLASSES or len(longest) > _MAX_CLASS_NAME:
        raise _unusable(
            f"the data set has {len(files.classes)} classes; the longest name is {longest[:80]!r}",
            f"Limits: {_MAX_CLASSES} classes, {_MAX_CLASS_NAME} characters in a name.",
        )
    if len(files.train) < 2:
        raise _unusable(f"every image is of the class {next(iter(files.train))!r}", "Give at least two classes.")
    return files


def _unusable(message: str, hint: str) -> KnownError:
    return KnownError("dataset_unusable", message, hint)


def _inspect_folders(names: Sequence[str]) -> ImageFiles:
    train: list[PurePosixPath] = []
    test: list[PurePosixPath] = []
    for path in map(PurePosixPath, names):
        if path.suffix.lower() in _FORMATS and len(path.parts) >= 2:
            (test if path.parts[0].lower() in _TEST and len(path.parts) >= 3 else train).append(path)
    classes = sorted({path.parent.name for path in train})
    unknown = {path.parent.name for path in test}.difference(classes)
    if unknown:
        raise _unusable(f"the test split has classes that train lacks: {sorted(unknown)[:10]}", "Rename the folders.")
    number = {name: index for index, name in enumerate(classes)}

    def split(paths: list[PurePosixPath]) -> Split:
        labels = np.array([number[path.parent.name] for path in paths], dtype=np.int64)
        return Split([path.as_posix() for path in paths], labels)

    return ImageFiles("imagefolder", classes, split(train), split(test))


@dataclass(frozen=True)
class _Layout:
    """How a parquet file stores its examples. ``names`` are the classes its metadata declares, if it does."""

    image: str
    label: str
    integers: bool
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class _Labels:
    """A label column: its distinct values, and which of them each row has."""

    values: list[Any]  # all integers or all strings
    indices: NDArray[np.int64]


def _inspect_parquet(source: Source, names: Sequence[str]) -> ImageFiles:
    columns: dict[str, _Labels] = {}
    layouts: dict[str, _Layout] = {}
    rows = 0
    for name in names:
        with source.open(name) as stream, _parquet_errors(name):
            metadata = pq.read_metadata(stream)
            layouts[name] = _layout(metadata.schema.to_arrow_schema())
            rows += sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
            if rows > _MAX_ROWS:
                raise KnownError(
                    "row_limit",
                    f"the data set has {rows} rows up to {name}; the limit is {_MAX_ROWS}",
                    "Give fewer rows.",
                )
            columns[name] = _labels(stream, metadata, layouts[name].label)
    layout = layouts[names[0]]
    if differing := [name for name in names if layouts[name] != layout]:
        raise _unusable(
            f"{differing[0]} and {names[0]} differ in their columns, label type or class names",
            "Write all files with one schema.",
        )
    distinct: set[Any] = {value for column in columns.values() for value in column.values}
    classes = list(layout.names) if layout.names is not None else _classes(distinct)
    number = {value: index for index, value in enumerate(range(len(classes)) if layout.integers else classes)}
    if unknown := distinct - number.keys():
        raise KnownError(
            "label_out_of_range",
            f"label {repr(min(unknown))[:80]} is not one of the {len(classes)} classes",
            f"Number the classes from 0 (at most {_MAX_CLASSES}), or use the names that the file declares.",
        )

    def split(files: list[str]) -> Split:
        labels = [
            np.array([number[value] for value in columns[file].values], dtype=np.int64)[columns[file].indices]
            for file in files
        ]
        return Split(files, np.concatenate([np.zeros(0, dtype=np.int64), *labels]))

    train, test = [n for n in names if not _is_test(n)], [n for n in names if _is_test(n)]
    return ImageFiles("parquet", classes, split(train), split(test), layout.image)


def _is_test(name: str) -> bool:
    """Whether a parquet file is of the test split: the last word of its path that names a split decides."""
    words = [word for word in re.split("[^a-z]+", name.lower()) if word in (*_TRAIN, *_TEST)]
    return bool(words) and words[-1] in _TEST


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unusable(
            f"{name} is not readable parquet: {str(error)[:200]}", "Give an imagefolder zip or a parquet file."
        ) from error


def _layout(schema: pa.Schema) -> _Layout:
    image = next((name for name in _IMAGE_COLUMNS if schema.get_field_index(name) >= 0), None)
    label = next((name for name in _LABEL_COLUMNS if schema.get_field_index(name) >= 0), None)
    if image is None or label is None:
        raise _unusable(f"the parquet columns are {str(schema.names[:20])[:200]}", "Name them image and label.")
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        image, kind = f"{image}.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise _unusable(
            f"the column {image!r} holds {str(kind)[:80]}, not the bytes of images",
            "Embed the images: Dataset.to_parquet of the datasets library does.",
        )
    kind = schema.field(label).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    integers = pa.types.is_integer(kind)
    if not (integers or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _unusable(f"the column {label!r} holds {str(kind)[:80]}", "Use integers or strings as labels.")
    return _Layout(image, label, integers, _declared_names(schema.metadata or {}, label))


def _declared_names(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """The class names that the datasets library writes into a file's metadata."""
    try:
        node = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        node = None
    for key in ("info", "features", label, "names"):
        if isinstance(node, dict) and key not in node:
            return None
        node = node[key] if isinstance(node, dict) else None
    if not isinstance(node, list) or not all(isinstance(name, str) for name in node) or len(set(node)) < len(node):
        raise _unusable(
            f"the huggingface metadata declares no list of distinct class names for {label!r}",
            "Write the file again with Dataset.to_parquet, or without that metadata.",
        )
    return tuple(node)


def _labels(stream: BinaryIO, metadata: pq.FileMetaData, label: str) -> _Labels:
    # as a dictionary: a few bytes of parquet can say of a million rows that they hold the same long text
    file = pq.ParquetFile(stream, metadata=metadata, read_dictionary=[label])
    column = file.read(columns=[label]).column(0)
    if column.null_count:
        raise _unusable(f"{column.null_count} labels are empty", "Remove the rows without a label.")
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return _Labels(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))


def _classes(values: set[Any]) -> list[str]:
    """The classes of labels that are not declared: strings as they are, integers from 0 to the largest."""
    if any(isinstance(value, int) for value in values):
        return [str(value) for value in range(min(max(values) + 1, _MAX_CLASSES))]
    return sorted(values)


class LabelledImages(Dataset[dict[str, Tensor]]):
    """Images and labels as a network takes them; preprocessed once and kept in memory where they fit.

    Args:
        rows: a datasets.Dataset with one column, "image": the path of a file, or the bytes of an image.
        labels: (N,) int64 labels.
        preprocess: images to (N, C, H, W) float32.
    """

    def __init__(self, rows: datasets.Dataset, labels: NDArray[np.int64], preprocess: Preprocess) -> None:
        self.labels = labels
        self._rows, self._preprocess = rows, preprocess
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
        rows = self._rows[indices.tolist()]["image"]
        return [_read_image(value, index) for value, index in zip(rows, indices.tolist(), strict=True)]


def _read_image(value: str | bytes, index: int) -> Image.Image:
    """Decode one image, upright as its EXIF orientation says."""
    name = "/".join(Path(value).parts[-2:]) if isinstance(value, str) else f"image {index}"
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Path(value).open("rb") if isinstance(value, str) else io.BytesIO(value) as stream,
            Image.open(stream, formats=tuple(_FORMATS.values())) as image,
        ):
            image.load()
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise KnownError("image_limit", f"{name}: {error}", f"Images may have {_MAX_PIXELS} pixels.") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(sorted(set(_FORMATS.values())))
        raise _unusable(f"{name} is not an image of a known format", f"Use {formats}.") from error
    except _BROKEN_IMAGE as error:
        raise _unusable(f"{name} cannot be decoded: {error}", "Remove or repair broken images.") from error


def load_images(
    folder: Path, files: ImageFiles, preprocess: Preprocess, cache: Path
) -> tuple[LabelledImages, LabelledImages | None]:
    """The train and test splits of an unpacked data set; labels index ``files.classes``.

    Args:
        folder: where the files lie.
        cache: where the images of parquet files are kept, uncompressed and memory-mapped.

    Raises:
        KnownError: ``dataset_unusable`` for parquet whose images are missing, ``row_limit`` for a bomb.
    """
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS

    def read(split: Split, name: str) -> LabelledImages:
        paths = [folder / file for file in split.files]
        if files.format == "imagefolder":
            rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
        else:
            rows = _embedded_images(paths, files.image_column, cache / f"{name}.arrow")
        if len(rows) != len(split.labels):
            raise _unusable(
                f"the {name} split has {len(split.labels)} labels and {len(rows)} images", "Write the files again."
            )
        return LabelledImages(rows, split.labels, preprocess)

    train = read(files.train_split, "train")
    return train, read(files.test_split, "test") if len(files.test_split.labels) else None


def _embedded_images(paths: Sequence[Path], column: str, target: Path) -> datasets.Dataset:
    """The images in parquet files as one memory-mapped column of bytes."""
    schema = pa.schema([("image", pa.large_binary())])
    with (
        atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for path in paths:
            unpacked = 0
            for images in _image_batches(path, column):
                unpacked += images.nbytes
                if expands_too_far(path.stat().st_size, unpacked):
                    raise KnownError(
                        "row_limit", f"{path.name} unpacks to more than {unpacked} bytes", "Remove giant rows."
                    )
                writer.write(pa.record_batch([images], schema=schema))
    return datasets.Dataset.from_file(str(target))


def _image_batches(path: Path, column: str) -> Iterator[pa.Array]:
    with path.open("rb") as stream, _parquet_errors(path.name):
        for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, columns=[column]):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            if images.null_count:
                raise _unusable(
                    f"{path.name} has rows without the bytes of an image", "Embed the images instead of naming files."
                )
            yield images.cast(pa.large_binary())
