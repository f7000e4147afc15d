"""A data set inspected without unpacking, and read from disk as rows of what a task asks for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from known_core.checkpoint.header import is_utf8
from known_core.checkpoint.source import Source, expands_too_far, open_source
from known_core.data import folders, tables
from known_core.data.files import DataFiles, Role, Split, split_names, unusable
from known_core.errors import KnownError
from known_core.files import atomic_path
from known_core.spec import DataSettings

MAX_CLASSES = 100_000
_MAX_CLASS_NAME = 255  # characters
_ARROW_TYPES = {
    "image": pa.large_binary(), "label": pa.int64(), "text": pa.large_string(),
    "words": pa.large_list(pa.large_string()), "tags": pa.large_list(pa.int64()),
}  # fmt: skip


def inspect_data(source: Source, roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    """Files, columns, classes and labels, from file names or from the columns with classes alone.

    Args:
        roles: what the task reads of a row.

    Raises:
        KnownError: ``dataset_unusable`` when it is empty, has one class, or has no readable layout;
            ``label_out_of_range``; ``row_limit``; ``dataset_script_refused`` when it holds code.
    """
    names = source.names()
    if scripts := [name for name in names if name.endswith(".py")]:
        raise KnownError("dataset_script_refused", f"the data set holds code: {scripts[0][:120]}", "Remove it.")
    table_files = [name for name in names if tables.format_of(name)]
    images = [name for name in names if folders.is_image(name)]
    wants_images = any(role.kind == "image" for role in roles)
    if wants_images and images and not any(tables.format_of(name) in ("parquet", "arrow") for name in names):
        files = folders.inspect_folders(names, roles)
    elif table_files:
        files = _inspect_tables(source, table_files, roles, settings)
    else:
        files = DataFiles("empty", {}, [], _EMPTY, _EMPTY)
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


_EMPTY = Split([], 0, np.zeros(0, dtype=np.int64))


def _check_classes(files: DataFiles) -> None:
    longest = max(files.classes, key=len, default="")
    if len(files.classes) > MAX_CLASSES or len(longest) > _MAX_CLASS_NAME:
        raise unusable(
            f"the data set has {len(files.classes)} classes; the longest name is {longest[:80]!r}",
            f"Limits: {MAX_CLASSES} classes, {_MAX_CLASS_NAME} characters in a name.",
        )
    if len(files.train_split.labels) and len(files.train) < 2:
        raise unusable(f"every example is of the class {next(iter(files.train))!r}", "Give at least two classes.")


def _inspect_tables(source: Source, names: Sequence[str], roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    train, test = split_names(names, source, settings)
    used = [*train, *test]
    if not train:
        return DataFiles("table", {}, [], _EMPTY, _EMPTY)
    formats = {tables.format_of(name) for name in used}
    layouts = {name: tables.layout_of(tables.schema_of(source, name), roles, settings.columns) for name in used}
    layout = layouts[train[0]]
    if differing := [name for name in used if layouts[name] != layout]:
        raise unusable(
            f"{differing[0]} and {train[0]} differ in their columns, label type or class names",
            "Write all files with one schema, or name the config or split to read.",
        )
    rows: dict[str, int] = {}
    total = 0
    for name in used:
        rows[name] = tables.row_count(source, name)
        total += rows[name]
        if total > tables.MAX_ROWS:
            raise KnownError(
                "row_limit",
                f"the data set has {total} rows up to {name}; the limit is {tables.MAX_ROWS}",
                "Give fewer rows.",
            )
    classed = next((role for role in roles if role.kind in ("label", "tags") and role.name in layout.columns), None)
    labels: dict[str, NDArray[np.int64]] = {name: np.zeros(0, dtype=np.int64) for name in used}
    classes: list[str] = []
    if classed is not None:
        columns = {name: tables.read_labels(source, name, layout.columns[classed.name]) for name in used}
        classes, number = _number_classes(layout, columns)
        if classed.kind == "label":
            labels = {name: _numbers(column, number) for name, column in columns.items()}

    def split(files: list[str]) -> Split:
        joined = np.concatenate([np.zeros(0, dtype=np.int64), *(labels[name] for name in files)])
        return Split(files, sum(rows[name] for name in files), joined)

    format_name = formats.pop() if len(formats) == 1 else None
    return DataFiles(format_name or "tables", layout.columns, classes, split(train), split(test))


def _number_classes(layout: tables.Layout, columns: Mapping[str, tables.Labels]) -> tuple[list[str], dict[Any, int]]:
    """The classes in order, and the number of each value that a label may have."""
    distinct: set[Any] = {value for column in columns.values() for value in column.values}
    if layout.names is not None:
        classes = list(layout.names)
    elif layout.integers:
        classes = [str(value) for value in range(min(max(distinct, default=-1) + 1, MAX_CLASSES))]
    else:
        classes = sorted(distinct)
    number = {value: index for index, value in enumerate(range(len(classes)) if layout.integers else classes)}
    if unknown := distinct - number.keys():
        raise KnownError(
            "label_out_of_range",
            f"label {repr(min(unknown))[:80]} is not one of the {len(classes)} classes",
            f"Number the classes from 0 (at most {MAX_CLASSES}), or use the names that the file declares; a split "
            'without labels is left out by naming another: "evaluation_split".',
        )
    return classes, number


def _numbers(column: tables.Labels, number: Mapping[Any, int]) -> NDArray[np.int64]:
    return np.array([number[value] for value in column.values], dtype=np.int64)[column.indices]


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
            rows = folders.read_folder(folder, split, roles, files)
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
    present = [role for role in roles if role.name in files.columns]
    schema = pa.schema([(role.name, _ARROW_TYPES[role.kind]) for role in present])
    with (
        atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for name in names:
            unpacked = 0
            for batch in _batches(folder / name, files, present):
                unpacked += batch.nbytes
                if expands_too_far((folder / name).stat().st_size, unpacked):
                    raise KnownError("row_limit", f"{name} unpacks to more than {unpacked} bytes", "Remove giant rows.")
                writer.write(batch.cast(schema))
    return datasets.Dataset.from_file(str(target))


def _batches(path: Path, files: DataFiles, roles: Sequence[Role]) -> Iterator[pa.RecordBatch]:
    number = {name: index for index, name in enumerate(files.classes)}
    columns = [files.columns[role.name] for role in roles]
    with path.open("rb") as stream:
        for batch in tables.read_columns(stream, path.name, path.stat().st_size, columns):
            arrays = []
            for role, array in zip(roles, batch.columns, strict=True):
                if role.required and array.null_count:
                    what = "the bytes of an image" if role.kind == "image" else f"a {role.name}"
                    raise unusable(f"{path.name} has rows without {what}", "Complete them, or remove them.")
                if role.kind in ("label", "tags"):
                    array = _as_numbers(array, number)
                with tables.table_errors(path.name):
                    arrays.append(array.cast(_ARROW_TYPES[role.kind]))
            yield pa.record_batch(arrays, names=[role.name for role in roles])


def _as_numbers(array: pa.Array, number: Mapping[str, int]) -> pa.Array:
    """Classes as numbers: names are looked up, integers are numbers already."""
    values = array.to_pylist()

    def one(value: Any) -> Any:
        return number[value] if isinstance(value, str) else value

    return pa.array([[one(item) for item in value] if isinstance(value, list) else one(value) for value in values])


def open_unpacked(folder: Path, roles: Sequence[Role], settings: DataSettings) -> DataFiles:
    """What :func:`inspect_data` says of an unpacked data set."""
    return inspect_data(open_source(folder, single_file_name="data.parquet"), roles, settings)
