"""Files of every form as batches of columns: parquet, csv, json lines, arrow, text; a stranger's, so within limits.

Not by the datasets library's builders: those take file names for patterns and URLs, open any path that a file names,
and let its metadata choose how columns are decoded. Text forms are read record by record in Python: pyarrow's readers
tell types from the first block alone, need 8 GB for a header of a million columns, and know no longest row.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from known_core.checkpoint.source import Source, expands_too_far
from known_core.data.files import unusable
from known_core.errors import KnownError

FORMATS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".arrow": "arrow", ".txt": "text",
}  # fmt: skip
MAX_ROWS = 10_000_000  # a few bytes of parquet can claim 2^31 rows
MAX_CELL_BYTES = 64 << 20  # of a text, an image, a line
MAX_COLUMNS = 10_000
_BATCH_ROWS = 100  # in memory at once, of parquet
_BATCH_BYTES = 32 << 20  # the same of a text form
_READ_BYTES = 4 << 20  # of a text form at once: on the Hub each is a request
_TYPED_BY = 1000  # rows of json lines that say what type a column has
_NOT_DATA = frozenset({"dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json", "config.json"})
_JSON_GAP = re.compile(r"[\s,\[\]]*")  # between the objects of json lines, or of one list
_UNREADABLE = pa.null()  # the type of a column whose values have several


def format_of(name: str) -> str | None:
    """The format that a file's name says, or None where it is no table."""
    path = PurePosixPath(name)
    if path.name in _NOT_DATA or path.name.upper().startswith((".", "README", "LICENSE")):
        return None
    kind = FORMATS.get(path.suffix.lower())
    return None if kind == "arrow" and path.name.startswith("cache-") else kind  # what Dataset.map leaves behind


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Errors over a file that is not what its name says, as one KnownError."""
    try:
        yield
    except (
        pa.ArrowException, csv.Error, OSError, ValueError, OverflowError, RecursionError, MemoryError
    ) as error:  # fmt: skip
        kind = format_of(name) or "data"
        raise unusable(
            f"{name} is not readable {kind}: {str(error)[:200]}",
            "Write it again: parquet, csv with a header, json lines, arrow, or text, in UTF-8.",
        ) from error


def schema_of(source: Source, name: str) -> pa.Schema:
    """The columns of a file, from its head alone.

    Raises:
        KnownError: ``dataset_unusable``; ``row_limit``.
    """
    with source.open(name) as stream, table_errors(name):
        if format_of(name) == "parquet":
            schema = pq.read_schema(stream)
        else:
            with open_table(stream, name) as table:
                schema = table.schema
    if len(schema) > MAX_COLUMNS:
        raise unusable(f"{name} has {len(schema)} columns", f"The limit is {MAX_COLUMNS}.")
    with table_errors(name):
        str([schema.names, *schema.types])  # names that are no UTF-8 fail here
    return schema


def check_rows(rows: int, name: str) -> None:
    """Raises: KnownError ``row_limit``."""
    if rows > MAX_ROWS:
        raise KnownError(
            "row_limit", f"the data set has {rows} rows up to {name}; the limit is {MAX_ROWS}", "Give fewer rows."
        )


def read_columns(
    stream: BinaryIO,
    name: str,
    size: int,
    columns: Sequence[str],
    batch_rows: int = _BATCH_ROWS,
    row_group: tuple[pq.FileMetaData, int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of the columns asked for, in their order, named by their position, never encoded as dictionaries.

    Args:
        size: the file's bytes; what unpacks to far more is a bomb.
        columns: names; ``image.bytes`` is a field of a struct.
        batch_rows: how many rows of parquet are in memory at once.
        row_group: the only one of parquet to read, and the footer that was read already; None is all of the file.

    Raises:
        KnownError: ``dataset_unusable``; ``row_limit``.
    """
    unpacked = 0
    with table_errors(name):
        for batch in _batches(stream, name, size, columns, batch_rows, row_group):
            arrays = []
            for column in columns:
                array = _column(batch, column)
                array.validate(full=True)  # neither reader looks at offsets or UTF-8
                total, longest = _extent(array)
                unpacked += total
                if longest > MAX_CELL_BYTES or expands_too_far(size, unpacked):
                    raise _giant(name, f"the column {column!r} unpacks to {unpacked} bytes, one cell to {longest}")
                arrays.append(array.cast(_plain(array.type)))
            yield pa.record_batch(arrays, names=[str(index) for index in range(len(columns))])


def _giant(name: str, what: str) -> KnownError:
    return KnownError(
        "row_limit", f"{name}: {what}", f"Remove giant rows; a cell or a line may have {MAX_CELL_BYTES >> 20} MiB."
    )


def _batches(
    stream: BinaryIO,
    name: str,
    size: int,
    columns: Sequence[str],
    batch_rows: int,
    row_group: tuple[pq.FileMetaData, int] | None,
) -> Iterator[pa.RecordBatch]:
    if format_of(name) != "parquet":
        with open_table(stream, name) as table:
            yield from table
        return
    if row_group is not None:
        metadata, wanted = row_group[0], [row_group[1]]
    else:
        metadata = pq.read_metadata(stream)
        check_rows(metadata.num_rows, name)
        wanted = list(range(metadata.num_row_groups))
    for index in wanted:
        claimed = claimed_bytes(metadata, index, columns)
        if expands_too_far(size, claimed):
            raise _giant(name, f"a row group unpacks to {claimed} bytes")
    # texts as dictionaries: a few bytes of parquet can say of a million rows that they hold the same long text
    file = pq.ParquetFile(stream, metadata=metadata, read_dictionary=_leaves(metadata, columns))
    yield from file.iter_batches(batch_rows, row_groups=wanted, columns=list(columns))


def claimed_bytes(metadata: pq.FileMetaData, row_group: int, columns: Sequence[str]) -> int:
    """What the footer of a parquet file says that these columns of a row group unpack to. Raises: OSError."""
    _check_chunks(metadata, row_group, columns)
    group, leaves = metadata.row_group(row_group), set(_leaves(metadata, columns))
    chosen = [index for index in range(metadata.num_columns) if metadata.schema.column(index).path in leaves]
    chunks = [group.column(index) for index in chosen]
    return sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in chunks)


def _check_chunks(metadata: pq.FileMetaData, row_group: int, columns: Sequence[str]) -> None:
    """Look at a footer's columns where pyarrow gives an error for what is wrong: ``RowGroupMetaData.column`` ends the
    process (pyarrow 26). With ``pre_buffer`` its reader looks at all of them before it reads the first byte of data."""
    file = pq.ParquetFile(_Unread(), metadata=metadata, pre_buffer=True)
    with suppress(_Reached):
        next(file.iter_batches(1, row_groups=[row_group], columns=list(columns)), None)


class _Reached(Exception):
    """All that comes before the data is sound."""


class _Unread(io.RawIOBase):
    """A file as long as any, of which nothing is read."""

    def __init__(self) -> None:
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: 1 << 62}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        raise _Reached


def _leaves(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[str]:
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    return [path for path in paths if any(path == column or path.startswith(f"{column}.") for column in columns)]


def _column(batch: pa.RecordBatch, column: str) -> pa.Array:
    if batch.schema.get_field_index(column) >= 0:
        return batch.column(column)
    outer, _, inner = column.partition(".")
    return pc.struct_field(batch.column(outer), inner)


def _extent(array: pa.Array) -> tuple[int, int]:
    """The bytes of an array without dictionaries, and of its longest cell."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = pc.list_value_length(array)
        total, longest = _extent(array.flatten())
        return total + 8 * len(array), max(longest, 8 * (pc.max(lengths).as_py() or 0))
    sizes = _sizes(array.dictionary).take(array.indices) if pa.types.is_dictionary(array.type) else _sizes(array)
    return (pc.sum(sizes).as_py() or 0) + 8 * len(array), pc.max(sizes).as_py() or 0


def _sizes(array: pa.Array) -> pa.Array:
    if array.type in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string()):
        return pc.binary_length(array).cast(pa.int64())
    return pa.repeat(pa.scalar(8, pa.int64()), len(array))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The same type without dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return kind


class Table(Protocol):
    """Batches and the columns they have."""

    schema: pa.Schema

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


@contextmanager
def open_table(stream: BinaryIO, name: str) -> Iterator[Table]:
    """A file that is no parquet. Errors are as pyarrow and Python say them: see :func:`table_errors`.

    Raises:
        KnownError: ``dataset_unusable``; ``row_limit``.
    """
    kind = format_of(name)
    with _Ahead(cast(io.RawIOBase, stream), _READ_BYTES) as large:
        if kind == "arrow":
            yield _arrow(large)
            return
        with io.TextIOWrapper(large, encoding="utf-8-sig", newline="") as text:
            if kind == "csv":
                yield _csv(text, name)
            elif kind == "text":
                yield _Records(_lines(text, name), ["text"])
            else:
                yield _Records(_json(text, name))


class _Ahead(io.BufferedReader):
    """Reads ahead under a TextIOWrapper too: that asks by ``read1``, 8 KiB at a time and past every buffer."""

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)


def _arrow(stream: BinaryIO) -> Table:
    try:
        table: Table = pa.ipc.open_stream(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        table = _ArrowFile(pa.ipc.open_file(stream))
    return table


class _ArrowFile:
    def __init__(self, file: Any) -> None:
        self._file, self.schema = file, file.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (self._file.get_batch(index) for index in range(self._file.num_record_batches))


_Record = tuple[int, dict[str, Any]]  # its characters, and its values by column


class _Records:
    """Records of a text form as batches.

    Args:
        texts: the columns, where all are texts; None tells columns and types by the first records.
    """

    def __init__(self, records: Iterator[_Record], texts: Sequence[str] | None = None) -> None:
        self._records = records
        if texts is not None:
            self.schema = pa.schema([(name, pa.string()) for name in texts])
            return
        head = next(_portions(records, _TYPED_BY), [])
        self._records = chain(head, records)
        names = list(dict.fromkeys(name for _, record in head for name in record))
        if len(names) > MAX_COLUMNS:
            raise unusable(f"there are {len(names)} columns", f"The limit is {MAX_COLUMNS}.")
        self.schema = pa.schema([(name, _type([record.get(name) for _, record in head])) for name in names])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for portion in _portions(self._records, 1000):
            columns = [pa.array([row.get(field.name) for _, row in portion], field.type) for field in self.schema
                       if field.type != _UNREADABLE]  # fmt: skip
            yield pa.record_batch(columns, schema=pa.schema([f for f in self.schema if f.type != _UNREADABLE]))


def _portions(records: Iterator[_Record], most: int) -> Iterator[list[_Record]]:
    """So many records together, or fewer where they are long."""
    while True:
        portion: list[_Record] = []
        size = 0
        for record in islice(records, most):
            portion.append(record)
            size += record[0]
            if size > _BATCH_BYTES:
                break
        if not portion:
            return
        yield portion


def _type(values: list[Any]) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, ValueError, OverflowError):
        return _UNREADABLE
    return pa.string() if pa.types.is_null(kind) else kind


class _Bounded:
    """The lines of a text; those of one record, since :meth:`begin`, have a limit together."""

    def __init__(self, text: TextIO, name: str) -> None:
        self._text, self._name, self._characters = text, name, 0

    def begin(self) -> None:
        self._characters = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_CELL_BYTES):
            self._characters += len(line)
            if self._characters >= MAX_CELL_BYTES:
                raise _giant(self._name, f"a line or row has {MAX_CELL_BYTES} characters or more")
            yield line


def _lines(text: TextIO, name: str) -> Iterator[_Record]:
    bounded = _Bounded(text, name)
    for line in bounded:
        bounded.begin()
        if stripped := line.strip():
            yield len(line), {"text": stripped}


def _csv(text: TextIO, name: str) -> _Records:
    """All columns are texts; an empty cell is none."""
    csv.field_size_limit(MAX_CELL_BYTES)  # of this process: the default is 128 KiB
    lines = _Bounded(text, name)
    rows = csv.reader(lines, delimiter="\t" if name.lower().endswith(".tsv") else ",", strict=True)
    header = next(rows, [])
    if len(header) > MAX_COLUMNS:
        raise unusable(f"{name} has {len(header)} columns", f"The limit is {MAX_COLUMNS}.")

    def records() -> Iterator[_Record]:
        for row in rows:
            lines.begin()
            if row and len(row) != len(header):
                raise unusable(
                    f"line {rows.line_num} of {name} has {len(row)} cells, its header {len(header)}",
                    'Quote cells that hold separators or line ends: "a, b".',
                )
            if row:
                yield sum(map(len, row)), {column: cell or None for column, cell in zip(header, row, strict=True)}

    return _Records(records(), header)


def _json(text: TextIO, name: str) -> Iterator[_Record]:
    """The objects of json lines or of a list, one after the other, whatever white space is between them."""
    decoder = json.JSONDecoder()
    buffer, position, ended, count = "", 0, False, 0
    while True:
        gap = _JSON_GAP.match(buffer, position)
        position = gap.end() if gap else position
        if ended and position == len(buffer):
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
        except ValueError as error:  # wrong, or not all of it is there yet
            if ended:
                raise unusable(f"record {count + 1} of {name} is not JSON: {str(error)[:100]}", "Repair it.") from error
            rest = buffer[position:]
            if len(rest) > MAX_CELL_BYTES:
                raise _giant(
                    name, f"record {count + 1} has more than {MAX_CELL_BYTES} characters, or is not JSON"
                ) from error
            more = text.read(max(1 << 20, len(rest)))
            buffer, position, ended = rest + more, 0, not more
            continue
        if not isinstance(value, dict):
            raise unusable(f"record {count + 1} of {name} is no JSON object", "Write one object a line.")
        yield end - position, value
        position, count = end, count + 1
