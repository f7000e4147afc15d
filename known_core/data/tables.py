"""Tables: parquet, csv, json lines, arrow and text files, read column by column.

Not by the datasets library's builders: those take file names for patterns and URLs, open any path that a file names,
and let its metadata choose how columns are decoded.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.data.files import Role, unusable
from known_core.errors import KnownError

FORMATS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".arrow": "arrow", ".txt": "text",
}  # fmt: skip
MAX_ROWS = 10_000_000  # a few bytes of parquet can claim 2^31 rows
_BATCH_ROWS = 100  # rows of parquet in memory at once
_MAX_JSON_ARRAY_BYTES = 256 << 20  # a .json file that is one list is read whole
_NOT_DATA = frozenset({"dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json", "config.json"})


def format_of(name: str) -> str | None:
    """The format that a file's name says, or None where it is no table."""
    path = PurePosixPath(name)
    return (
        None
        if path.name in _NOT_DATA or path.name.upper().startswith((".", "README", "LICENSE"))
        else FORMATS.get(path.suffix.lower())
    )


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Errors of pyarrow, over a file that is not what its name says, as one KnownError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        kind = format_of(name) or "data"
        raise unusable(
            f"{name} is not readable {kind}: {str(error)[:200]}", "Give an image folder, or parquet, csv or json lines."
        ) from error


def schema_of(source: Source, name: str) -> pa.Schema:
    """The columns of a file, from its head alone where the format has one."""
    with source.open(name) as stream, table_errors(name):
        if format_of(name) == "parquet":
            return pq.read_schema(stream)
        reader = _reader(stream, name, source.size(name))
        return reader.schema


def row_count(source: Source, name: str) -> int:
    """The rows of a file.

    Raises:
        KnownError: ``row_limit``.
    """
    with source.open(name) as stream, table_errors(name):
        if format_of(name) == "parquet":
            metadata = pq.read_metadata(stream)
            rows = int(sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)))
            _check_rows(rows, name)
            return rows
        rows = 0
        for batch in _reader(stream, name, source.size(name)):
            rows += len(batch)
            _check_rows(rows, name)
        return rows


def _check_rows(rows: int, name: str) -> None:
    if rows > MAX_ROWS:
        raise KnownError(
            "row_limit", f"the data set has {rows} rows up to {name}; the limit is {MAX_ROWS}", "Give fewer rows."
        )


def read_columns(stream: BinaryIO, name: str, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of the columns asked for, in their order, named by their position.

    Args:
        columns: names; ``image.bytes`` is a field of a struct.
    """
    with table_errors(name):
        if format_of(name) == "parquet":
            batches: Any = pq.ParquetFile(stream).iter_batches(_BATCH_ROWS, columns=list(columns))
        else:
            batches = _reader(stream, name, size)
        for batch in batches:
            chosen = [_column(batch, column) for column in columns]
            yield pa.record_batch(chosen, names=[str(index) for index in range(len(columns))])


def _column(batch: pa.RecordBatch, column: str) -> pa.Array:
    outer, _, inner = column.partition(".")
    if batch.schema.get_field_index(column) >= 0:
        return batch.column(column)
    array = batch.column(outer)
    return array.field(inner) if array.null_count == 0 else pc.struct_field(array, inner)


def _reader(stream: BinaryIO, name: str, size: int) -> Any:
    """An iterable of record batches with a schema."""
    kind = format_of(name)
    if kind == "csv":
        options = pa_csv.ParseOptions(delimiter="\t" if name.lower().endswith(".tsv") else ",", newlines_in_values=True)
        return pa_csv.open_csv(stream, parse_options=options)
    if kind == "arrow":
        try:
            return pa.ipc.open_stream(stream)
        except pa.ArrowInvalid:
            stream.seek(0)
            return _ArrowFile(pa.ipc.open_file(stream))
    if kind == "text":
        return _Lines(stream)
    head = stream.read(1024)
    stream.seek(0)
    if head.lstrip()[:1] == b"[":
        if size > _MAX_JSON_ARRAY_BYTES:
            raise unusable(f"{name} is one JSON list of {size} bytes", "Write json lines: one object a line.")
        return pa.Table.from_pylist(json.load(stream)).to_reader()
    return pa_json.open_json(stream)


class _ArrowFile:
    def __init__(self, file: Any) -> None:
        self._file, self.schema = file, file.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (self._file.get_batch(index) for index in range(self._file.num_record_batches))


class _Lines:
    """A text file: one column, one row a line that is not empty."""

    schema = pa.schema([("text", pa.large_string())])

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        lines: list[str] = []
        for line in io.TextIOWrapper(self._stream, encoding="utf-8"):
            if text := line.strip():
                lines.append(text)
            if len(lines) == 10_000:
                yield pa.record_batch([pa.array(lines, pa.large_string())], schema=self.schema)
                lines = []
        if lines:
            yield pa.record_batch([pa.array(lines, pa.large_string())], schema=self.schema)


@dataclass(frozen=True)
class Layout:
    """How a file stores what a task reads.

    ``names`` are the classes that the file's metadata declares, if it does; ``integers`` whether classes are numbers.
    """

    columns: dict[str, str]
    integers: bool
    names: tuple[str, ...] | None


def layout_of(schema: pa.Schema, roles: Sequence[Role], wishes: Mapping[str, str]) -> Layout:
    """Find a column for each role.

    Args:
        wishes: the user's own choice, role to column.

    Raises:
        KnownError: ``dataset_unusable`` naming the columns there are.
    """
    if unknown := sorted(wishes.keys() - {role.name for role in roles}):
        raise unusable(f"columns names the roles {unknown}", f"This task reads {[role.name for role in roles]}.")
    columns: dict[str, str] = {}
    integers, names = False, None
    for role in roles:
        column = _find(schema, role, wishes.get(role.name), columns)
        if column is None:
            continue
        kind = schema.field(column).type
        if role.kind == "image":
            column, kind = _bytes_of_images(column, kind)
        elif role.kind == "text" and not _is_text(kind):
            raise unusable(f"the column {column!r} holds {str(kind)[:80]}, not text", "Name another column.")
        elif role.kind in ("words", "tags"):
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise unusable(f"the column {column!r} holds {str(kind)[:80]}, not lists", "Name another column.")
            kind = kind.value_type
        if role.kind in ("label", "tags"):
            integers = _label_type(column, kind)
            names = _declared_names(schema.metadata or {}, column, role.kind == "tags")
        columns[role.name] = column
    return Layout(columns, integers, names)


def _find(schema: pa.Schema, role: Role, wish: str | None, taken: Mapping[str, str]) -> str | None:
    if wish is not None and schema.get_field_index(wish) < 0:
        raise unusable(f"there is no column {wish!r}", f"The columns are {str(schema.names[:20])[:200]}.")
    free = [name for name in role.columns if schema.get_field_index(name) >= 0 and name not in taken.values()]
    column = wish or next(iter(free), None)
    if column is None and role.required:
        raise unusable(
            f"the {role.name} is in none of the columns {str(schema.names[:20])[:200]}",
            f'Name it {" or ".join(role.columns[:3])}, or say which it is: "columns": {{"{role.name}": "..."}}.',
        )
    return column


def _bytes_of_images(column: str, kind: pa.DataType) -> tuple[str, pa.DataType]:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = f"{column}.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise unusable(
            f"the column {column!r} holds {str(kind)[:80]}, not the bytes of images",
            "Embed the images: Dataset.to_parquet of the datasets library does.",
        )
    return column, kind


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _label_type(column: str, kind: pa.DataType) -> bool:
    """Whether labels are numbers; they are texts otherwise."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    integers = bool(pa.types.is_integer(kind))
    if not (integers or _is_text(kind)):
        raise unusable(f"the column {column!r} holds {str(kind)[:80]}", "Use integers or strings as labels.")
    return integers


def _declared_names(metadata: Mapping[bytes, bytes], label: str, nested: bool) -> tuple[str, ...] | None:
    """The class names that the datasets library writes into a file's metadata."""
    try:
        node = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        node = None
    for key in ("info", "features", label, *(("feature",) if nested else ()), "names"):
        if isinstance(node, dict) and key not in node:
            return None
        node = node[key] if isinstance(node, dict) else None
    if not isinstance(node, list) or not all(isinstance(name, str) for name in node) or len(set(node)) < len(node):
        raise unusable(
            f"the huggingface metadata declares no list of distinct class names for {label!r}",
            "Write the file again with Dataset.to_parquet, or without that metadata.",
        )
    return tuple(node)


@dataclass(frozen=True)
class Labels:
    """A column of classes: its distinct values, and which of them each row has (for tags, each word)."""

    values: list[Any]  # all integers or all strings
    indices: NDArray[np.int64]


def read_labels(source: Source, name: str, column: str) -> Labels:
    """The classes of a file's rows, or of the words of all rows.

    Raises:
        KnownError: ``dataset_unusable`` for rows without one.
    """
    with source.open(name) as stream, table_errors(name):
        if format_of(name) == "parquet":
            # as a dictionary: a few bytes of parquet can say of a million rows that they hold the same long text
            metadata = pq.read_metadata(stream)
            file = pq.ParquetFile(stream, metadata=metadata, read_dictionary=[column])
            values = file.read(columns=[column]).column(0)
        else:
            batches = [batch.column(0) for batch in read_columns(stream, name, source.size(name), [column])]
            values = pa.chunked_array(batches)
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = pc.list_flatten(values)
        if values.null_count:
            raise unusable(f"{values.null_count} labels are empty", "Remove the rows without a label.")
        encoded = values.dictionary_encode().unify_dictionaries().combine_chunks()
        return Labels(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))
