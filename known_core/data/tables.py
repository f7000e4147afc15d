"""Which columns of a table play which role, and the classes of its rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.data.files import Role, unusable
from known_core.data.readers import check_rows, format_of, read_columns, table_errors
from known_core.errors import KnownError

MAX_CLASSES = 100_000
_LABEL_ROWS = 10_000  # rows of parquet whose classes are in memory at once


@dataclass(frozen=True)
class Layout:
    """How a file stores what a task reads.

    ``names`` are the classes that the file's metadata declares, if it does; ``integers`` whether classes are numbers;
    ``classed`` is the role that is a class, if there is one.
    """

    columns: dict[str, str]
    integers: bool
    names: tuple[str, ...] | None
    classed: Role | None


def lacks(schema: pa.Schema, column: str) -> bool:
    """Whether a file has no such column, or nothing in it."""
    return schema.get_field_index(column) < 0 or bool(pa.types.is_null(schema.field(column).type))


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
    integers, names, classed = False, None, None
    for role in roles:
        column = _find(schema, role, wishes.get(role.name), columns)
        if column is None:
            continue
        kind = schema.field(column).type
        if pa.types.is_null(kind):
            raise unusable(
                f"the column {column!r} is empty, or its values are of several types",
                f'Repair it, or name another: "columns": {{"{role.name}": "..."}}.',
            )
        if role.kind == "image":
            column, kind = _bytes_of_images(column, kind)
        elif role.kind == "text" and not _is_text(kind):
            raise unusable(f"the column {column!r} holds {str(kind)[:80]}, not text", "Name another column.")
        elif role.kind in ("words", "tags"):
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise unusable(f"the column {column!r} holds {str(kind)[:80]}, not lists", "Name another column.")
            kind = kind.value_type
            if role.kind == "words" and not _is_text(kind):
                raise unusable(
                    f"the column {column!r} holds lists of {str(kind)[:80]}, not texts", "Name another column."
                )
        if role.kind in ("label", "tags"):
            classed = role
            integers = _label_type(column, kind)
            names = _declared_names(schema.metadata or {}, column, role.kind == "tags")
        columns[role.name] = column
    return Layout(columns, integers, names, classed)


def _find(schema: pa.Schema, role: Role, wish: str | None, taken: Mapping[str, str]) -> str | None:
    if wish is not None and schema.get_field_index(wish) < 0:
        raise unusable(f"there is no column {wish!r}", f"The columns are {str(schema.names[:20])[:200]}.")
    free = [name for name in role.columns if schema.get_field_index(name) >= 0 and name not in taken.values()]
    column = wish or next(iter(free), None)
    if column is None and role.required:
        raise unusable(
            f"the {role.name} is in none of the columns {str(schema.names[:20])[:200]}",
            f'Name it {" or ".join(role.columns[:3])}, or say which it is: "columns": {{"{role.name}": "..."}} '
            f"(--column {role.name}=...).",
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
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
    """A file's rows, and their classes: the distinct values, and which of them each row has (for tags, each word)."""

    rows: int
    values: list[Any]  # integers, strings, and None for a row without one
    indices: NDArray[np.int64]

    @property
    def absent(self) -> bool:
        """Whether no row has a label: none is given, or -1 as in the test splits of GLUE."""
        return set(self.values) <= {None, -1, "-1"}


def read_labels(source: Source, name: str, column: str) -> Labels:
    """The classes of a file's rows, or of the words of all rows.

    Raises:
        KnownError: ``dataset_unusable``; ``row_limit``.
    """
    rows = 0
    number: dict[Any, int] = {}
    parts = [np.zeros(0, dtype=np.int64)]
    with source.open(name) as stream:
        for batch in read_columns(stream, name, source.size(name), [column], _LABEL_ROWS):
            rows += len(batch)
            check_rows(rows, name)
            values = batch.column(0)
            if pa.types.is_large_list(values.type):
                values = values.flatten()
            encoded = values.dictionary_encode(null_encoding="encode")
            distinct = encoded.dictionary.to_pylist()
            numbers = np.array([number.setdefault(value, len(number)) for value in distinct], dtype=np.int64)
            parts.append(numbers[encoded.indices.to_numpy()])
            if len(number) > MAX_CLASSES:
                raise too_many_classes(column)
    return Labels(rows, list(number), np.concatenate(parts))


def too_many_classes(column: str) -> KnownError:
    return unusable(
        f"the column {column!r} has more than {MAX_CLASSES} classes",
        'Say which column holds the classes: "columns": {"label": "..."}.',
    )


def count_rows(source: Source, name: str, column: str) -> int:
    """The rows of a file; one of its columns is read where the form does not say.

    Raises:
        KnownError: ``dataset_unusable``; ``row_limit``.
    """
    rows = 0
    with source.open(name) as stream:
        if format_of(name) == "parquet":
            with table_errors(name):
                rows = int(pq.read_metadata(stream).num_rows)
            check_rows(rows, name)
            return rows
        for batch in read_columns(stream, name, source.size(name), [column]):
            rows += len(batch)
            check_rows(rows, name)
    return rows
