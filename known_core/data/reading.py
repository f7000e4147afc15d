"""A data set inspected without unpacking, and read from disk as rows of what a task asks for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from known_core.checkpoint.header import is_utf8
from known_core.checkpoint.source import Source
from known_core.data import folders, readers, tables
from known_core.data.files import DataFiles, Role, Split, Splits, choose_splits, unusable
from known_core.data.images import read_image
from known_core.data.readers import check_rows, format_of
from known_core.data.tables import Layout
from known_core.errors import KnownError
from known_core.files import atomic_path
from known_core.spec import DataSettings

_MAX_CLASS_NAME = 255  # characters
_SHOWN_CHARACTERS = 200
_NUMBER = re.compile("-?(0|[1-9][0-9]{0,17})")
_ARROW_TYPES = {
    "image": pa.large_binary(), "label": pa.int64(), "text": pa.large_string(),
    "words": pa.large_list(pa.large_string()), "tags": pa.large_list(pa.int64()),
}  # fmt: skip
_EMPTY = Split([], 0, np.zeros(0, dtype=np.int64))


def inspect_data(source: Source, roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    """Files, columns, classes and labels, from file names or from the columns with classes alone.

    Where there are several splits to evaluate on, it is the one called test if its rows have labels, else the one
    called validation.

    Args:
        roles: what the task reads of a row.

    Raises:
        KnownError: ``dataset_unusable`` when it is empty, has one class, or has no readable layout;
            ``label_out_of_range``; ``row_limit``; ``dataset_script_refused`` when it holds code.
    """
    names = source.names()
    if scripts := [name for name in names if name.lower().endswith(".py")]:
        raise KnownError("dataset_script_refused", f"the data set holds code: {scripts[0][:120]}", "Remove it.")
    if is_folder_of_images(names, roles):
        files = folders.inspect_folders(source, roles, settings)
    else:
        files = _inspect_tables(source, roles, settings)
    if not files.train_split.rows:
        raise unusable(
            f"no examples were found to train on among {len(names)} files",
            "Lay images out as <class>/<image> or train/<class>/<image> (png, jpg, webp, bmp, gif, tiff), or give "
            "parquet, csv, json lines, arrow or text files.",
        )
    if broken := [name for name in (*names, *files.classes) if not is_utf8(name)]:
        raise unusable(f"the name {broken[0][:80]!r} is not valid Unicode", "Rename it.")
    if any(role.kind in ("label", "tags") for role in roles):
        _check_classes(files)
    return files


def is_folder_of_images(names: Sequence[str], roles: Sequence[Role]) -> bool:
    """Whether the examples are image files; a table that can hold images is preferred to them."""
    return (
        any(role.kind == "image" for role in roles)
        and any(folders.is_image(name) for name in names)
        and not any(format_of(name) in ("parquet", "arrow") for name in names)
    )


def _check_classes(files: DataFiles) -> None:
    longest = max(files.classes, key=len, default="")
    if len(files.classes) > tables.MAX_CLASSES or len(longest) > _MAX_CLASS_NAME:
        raise unusable(
            f"the data set has {len(files.classes)} classes; the longest name is {longest[:80]!r}",
            f"Limits: {tables.MAX_CLASSES} classes, {_MAX_CLASS_NAME} characters in a name.",
        )
    if len(files.train_split.labels) and len(files.train) < 2:
        raise unusable(f"every example is of the class {next(iter(files.train))!r}", "Give at least two classes.")


@dataclass(frozen=True)
class Part:
    """The files of one split; ``labels`` are empty where the task's rows have none."""

    name: str
    files: list[str]
    rows: int
    labels: dict[str, tables.Labels]

    @property
    def values(self) -> set[Any]:
        """The distinct labels."""
        return {value for labels in self.labels.values() for value in labels.values}


def _inspect_tables(source: Source, roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    splits = table_splits(source, settings)
    if not splits.train:
        return DataFiles("table", {}, [], _EMPTY, _EMPTY)
    layout = layout_of_files(source, splits.train, roles, settings)
    train = read_part(source, splits.train_name, splits.train, layout)
    test = evaluation_part(source, splits, roles, settings, layout) or Part("", [], 0, {})
    check_rows(train.rows + test.rows, (test.files or train.files)[-1])
    classes, number = number_classes(layout, splits.train[0], train.values | test.values)

    def split(part: Part) -> Split:
        labels = [np.zeros(0, dtype=np.int64)]
        if layout.classed is not None and layout.classed.kind == "label":
            labels += [_numbers(part.labels[name], number) for name in part.files]
        return Split(part.files, part.rows, np.concatenate(labels), part.name, sum(map(source.size, part.files)))

    formats = {format_of(name) for name in (*train.files, *test.files)}
    return DataFiles(
        str(formats.pop()) if len(formats) == 1 else "tables", layout.columns, classes, split(train), split(test)
    )


def table_splits(source: Source, settings: DataSettings) -> Splits:
    """The splits of a data set of tables; text files are only read where there is no other form.

    Raises:
        KnownError: ``dataset_unusable``.
    """
    names = [name for name in source.names() if format_of(name)]
    return choose_splits([name for name in names if format_of(name) != "text"] or names, source, settings)


def layout_of_files(
    source: Source, names: Sequence[str], roles: Sequence[Role], settings: DataSettings, first: Layout | None = None
) -> Layout:
    """The layout that all these files share, and share with ``first``.

    Raises:
        KnownError: ``dataset_unusable``.
    """
    for name in names:
        layout = tables.layout_of(readers.schema_of(source, name), roles, settings.columns)
        if first is not None and layout != first:
            raise unusable(
                f"{name} differs from the files before it in its columns, label type or class names",
                "Write all files with one schema, or name the config or split to read.",
            )
        first = layout
    if first is None:
        raise ValueError("no files")
    return first


def read_part(source: Source, split: str, names: list[str], layout: Layout) -> Part:
    labels: dict[str, tables.Labels] = {}
    rows = 0
    for name in names:
        if layout.classed is not None:
            labels[name] = tables.read_labels(source, name, layout.columns[layout.classed.name])
            rows += labels[name].rows
        else:
            rows += tables.count_rows(source, name, next(iter(layout.columns.values())))
        check_rows(rows, name)
    return Part(split, names, rows, labels)


def evaluation_part(
    source: Source, splits: Splits, roles: Sequence[Role], settings: DataSettings, layout: Layout
) -> Part | None:
    """The first of the splits whose rows have labels; None where there is no split to choose from."""
    unlabelled: list[str] = []
    for split, names in splits.evaluation.items():
        if not names:
            continue
        if layout.classed is None:
            layout_of_files(source, names, roles, settings, layout)
            return read_part(source, split, names, layout)
        column = layout.columns[layout.classed.name]
        if not any(tables.lacks(readers.schema_of(source, name), column) for name in names):
            layout_of_files(source, names, roles, settings, layout)
            part = read_part(source, split, names, layout)
            if not all(labels.absent for labels in part.labels.values()):
                return part
        unlabelled.append(split)
    if unlabelled:
        raise KnownError(
            "label_out_of_range",
            f"the split {unlabelled[0]!r} has no labels to evaluate with: the column is missing, empty, or -1",
            f'Name another, or hold a share of the training data out: "evaluation_split": "{splits.train_name}".',
        )
    return None


def number_classes(layout: Layout, name: str, distinct: set[Any]) -> tuple[list[str], dict[Any, int]]:
    """The classes in order, and the number of each value that a label may have.

    Args:
        name: of one of the files, for its form.
        distinct: the values that there are.

    Raises:
        KnownError: ``label_out_of_range``; ``dataset_unusable`` where some have no value.
    """
    if None in distinct:
        raise unusable("some of the labels are empty", "Remove the rows without a label.")
    # a csv says nothing of types: numbers are numbers where all are
    numbers = format_of(name) == "csv" and bool(distinct) and all(_NUMBER.fullmatch(value) for value in distinct)
    wanted = [int(value) for value in distinct] if numbers or layout.integers else []
    if layout.names is not None:
        classes = list(layout.names)
    elif numbers or layout.integers:
        classes = [str(value) for value in range(min(max(wanted, default=-1) + 1, tables.MAX_CLASSES))]
    else:
        classes = sorted(distinct)
    number: dict[Any, int] = {
        value: index for index, value in enumerate(range(len(classes)) if layout.integers else classes)
    }
    if unknown := distinct - number.keys():
        raise KnownError(
            "label_out_of_range",
            f"label {repr(min(unknown))[:80]} is not one of the {len(classes)} classes",
            f"Number the classes from 0 (at most {tables.MAX_CLASSES}), or use the names that the file declares.",
        )
    return classes, number


def _numbers(labels: tables.Labels, number: Mapping[Any, int]) -> NDArray[np.int64]:
    return np.array([number[value] for value in labels.values], dtype=np.int64)[labels.indices]


def read_data(
    folder: Path, files: DataFiles, roles: Sequence[Role], cache: Path
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The train and test splits of an unpacked data set, one column a role; classes are numbers into ``files.classes``.

    Args:
        folder: where the files lie.
        cache: where the rows of tables are kept, uncompressed and memory-mapped.

    Raises:
        KnownError: ``dataset_unusable`` for rows without what is asked for, ``row_limit`` for a bomb.
    """

    def read(split: Split, name: str) -> datasets.Dataset:
        if files.format == "imagefolder":
            rows = folders.read_folder(folder, split, roles)
        else:
            rows = _memory_mapped(folder, split.files, files, roles, cache / f"{name}.arrow")
        if len(rows) != split.rows:
            raise unusable(
                f"the {name} split has {split.rows} labels and {len(rows)} examples", "Write the files again."
            )
        return rows

    train = read(files.train_split, "train")
    return train, read(files.test_split, "test") if files.test_split.rows else None


def _memory_mapped(
    folder: Path, names: Sequence[str], files: DataFiles, roles: Sequence[Role], target: Path
) -> datasets.Dataset:
    number = {name: index for index, name in enumerate(files.classes)}
    present = [role for role in roles if role.name in files.columns]
    schema = pa.schema([(role.name, _ARROW_TYPES[role.kind]) for role in present])
    with (
        atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for name in names:
            with (folder / name).open("rb") as stream:
                columns = [files.columns[role.name] for role in present]
                for batch in readers.read_columns(stream, name, (folder / name).stat().st_size, columns):
                    writer.write(as_roles(batch, present, name, number).cast(schema))
    return datasets.Dataset.from_file(str(target))


def as_roles(batch: pa.RecordBatch, roles: Sequence[Role], name: str, number: Mapping[str, int]) -> pa.RecordBatch:
    """What :func:`known_core.data.readers.read_columns` gave, with the columns of the roles, complete.

    Args:
        name: of the file, for errors.
        number: the numbers of classes that are texts.

    Raises:
        KnownError: ``dataset_unusable``.
    """
    arrays = {role.name: _as_role(array, role, name, number) for role, array in zip(roles, batch.columns, strict=True)}
    lists = [arrays[role.name] for role in roles if role.kind in ("words", "tags")]
    if len(lists) == 2 and not pc.list_value_length(lists[0]).equals(pc.list_value_length(lists[1])):
        raise unusable(f"{name} has rows with more words than tags, or fewer", "Give every word one tag.")
    return pa.record_batch(arrays)


def _as_role(array: pa.Array, role: Role, name: str, number: Mapping[str, int]) -> pa.Array:
    """A column in the type of its role, complete."""
    nested = array.flatten().null_count if pa.types.is_large_list(array.type) else 0
    if array.null_count or nested:
        what = "the bytes of an image" if role.kind == "image" else f"a {role.name}"
        raise unusable(f"{name} has rows without {what}", "Complete them, or remove them.")
    with readers.table_errors(name):
        if role.kind in ("label", "tags"):
            array = pa.array(_as_numbers(array.to_pylist(), number))
        return array.cast(_ARROW_TYPES[role.kind])


def _as_numbers(values: list[Any], number: Mapping[str, int]) -> list[Any]:
    """Classes as numbers: names are looked up, integers are numbers already."""
    return [
        _as_numbers(value, number) if isinstance(value, list) else number[value] if isinstance(value, str) else value
        for value in values
    ]


def sample_of(rows: datasets.Dataset, files: DataFiles, roles: Sequence[Role]) -> list[dict[str, Any]]:
    """A few rows of :func:`read_data` as a person reads them: the first, one from the middle, the last.

    Args:
        rows: at least one.

    Returns:
        By role: texts cut at 200 characters, classes by name, images as "32 x 32 RGB".

    Raises:
        KnownError: ``dataset_unusable`` and ``image_limit`` for an image that cannot be read.
    """
    indices = sorted({0, len(rows) // 2, len(rows) - 1})
    kinds = {role.name: role.kind for role in roles}

    def shown(name: str, value: Any, index: int) -> str:
        if kinds[name] == "image":
            image = read_image(value, index)
            return f"{image.width} x {image.height} {image.mode}"
        if kinds[name] == "label":
            return str(files.classes[value])
        names = [files.classes[tag] for tag in value] if kinds[name] == "tags" else value
        text = names if isinstance(names, str) else " ".join(names[:_SHOWN_CHARACTERS])
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

    return [{name: shown(name, value, index) for name, value in rows[index].items()} for index in indices]
