"""A seeded random sample of a data set that is larger than the disk may take, read through any source."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from known_core.checkpoint.source import Source
from known_core.data import readers, tables
from known_core.data.files import CARD, Role, unusable
from known_core.data.folders import inspect_folders, is_masked
from known_core.data.readers import format_of
from known_core.data.reading import as_roles, evaluation_part, layout_of_files, number_classes, table_splits
from known_core.files import atomic_path
from known_core.spec import DataSettings

OnBytes = Callable[[int, int], None]  # so far, and of how many
_TEST_SHARE = 4  # the test split may have a quarter of the bytes
_SPREAD = 10  # row groups that a sample comes from at least: neighbours are often alike
_RESERVOIR_BYTES = 1 << 30  # a sample of text forms is held in memory
_ROW_BYTES = 200  # what Python needs for a row and its values
_GROUP_BYTES = 64 << 20  # rows that are written together


@dataclass
class _Counts:
    """What a sample was made of; ``rows`` is how many the split has."""

    rows_read: int = 0
    rows_kept: int = 0
    rows: int = 0


@dataclass(frozen=True)
class _Part:
    """Files of one split and what may be kept of them."""

    source: Source
    names: Sequence[str]
    columns: Sequence[str]
    max_bytes: int
    max_rows: int | None
    seed: Sequence[int]
    on_bytes: OnBytes
    counts: _Counts = field(default_factory=_Counts)

    @property
    def is_parquet(self) -> bool:
        return all(format_of(name) == "parquet" for name in self.names)


def sample_tables(
    source: Source,
    roles: Sequence[Role],
    settings: DataSettings,
    target: Path,
    *,
    max_bytes: int,
    seed: int,
    on_bytes: OnBytes,
) -> dict[str, Any]:
    """Write a random sample of a data set of tables below ``target``, as parquet with a card that names the splits.

    The same settings read it as they read the whole. Parquet is read row group by row group in a random order, and
    never more of it than the sample and one batch is held; of other forms every row is read, and the sample, at most
    1 GiB, is in memory. The same source, seed and limits give the same bytes.

    Args:
        roles: what the task reads of a row; nothing else is kept.
        max_bytes: of the sample, unpacked; a test split has a quarter of them at most.
        on_bytes: called with the bytes so far and of all. What it raises ends the work.

    Returns:
        For the report: ``seed``, and for ``train`` and ``test`` the rows read, kept, and of how many.

    Raises:
        KnownError: what :func:`known_core.data.inspect_data` raises of tables; ``dataset_unusable`` where no row fits.
    """
    splits = table_splits(source, settings)
    if not splits.train:
        raise unusable("no tables were found to train on", "Give parquet, csv, json lines, arrow or text files.")
    layout = layout_of_files(source, splits.train, roles, settings)
    test = evaluation_part(source, splits, roles, settings, layout)
    present = [role for role in roles if role.name in layout.columns]
    columns = [layout.columns[role.name] for role in present]
    test_bytes = max_bytes // _TEST_SHARE if test else 0
    parts = {"train": _Part(source, splits.train, columns, max_bytes - test_bytes, settings.max_examples, (seed, 0),
                            on_bytes)}  # fmt: skip
    if test is not None:
        parts["test"] = _Part(source, test.files, columns, test_bytes, None, (seed, 1), on_bytes)

    at = None if layout.classed is None else present.index(layout.classed)
    distinct = test.values if test else set()
    batches: dict[str, Iterable[pa.RecordBatch]] = {}
    for split, part in parts.items():
        if part.is_parquet:
            batches[split] = _of_parquet(part)
            if split == "train" and at is not None and layout.names is None:
                for name in part.names:
                    distinct |= set(tables.read_labels(source, name, columns[at]).values)
        else:
            batches[split] = _of_rows(part, at, distinct)
    classes, number = number_classes(layout, splits.train[0], distinct)

    features = _features(readers.schema_of(source, splits.train[0]), dict(zip(columns, present, strict=True)), classes)
    for split, part in parts.items():
        found = (as_roles(batch, present, f"the {split} split", number) for batch in batches[split])
        part.counts.rows_kept = _write(target / f"{split}.parquet", found, features)
    if not parts["train"].counts.rows_kept:
        raise unusable(f"no row fits into {max_bytes} bytes", "Raise the limit for data sets, or give smaller rows.")
    names = {"train": splits.train_name} | ({"test": test.name} if test else {})
    _write_card(target, names, settings.config)
    return {"seed": seed, **{split: asdict(part.counts) for split, part in parts.items()}}


def _of_parquet(part: _Part) -> Iterator[pa.RecordBatch]:
    """Random rows of random row groups, of at least ten where there are as many."""
    groups: list[tuple[str, tuple[pq.FileMetaData, int], int, int]] = []  # file, row group, rows, bytes
    for name in part.names:
        with part.source.open(name) as stream, readers.table_errors(name):
            metadata = pq.read_metadata(stream)
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            readers.check_rows(rows, name)
            if rows > 0:
                with readers.table_errors(name):
                    claimed = readers.claimed_bytes(metadata, index, part.columns)
                groups.append((name, (metadata, index), rows, claimed))
    part.counts.rows = sum(rows for _, _, rows, _ in groups)
    most = part.counts.rows if part.max_rows is None else part.max_rows
    fraction = min(1.0, part.max_bytes / max(1, sum(size for *_, size in groups)), most / max(1, part.counts.rows))
    share = min(1.0, fraction * len(groups) / max(1, min(len(groups), _SPREAD)))
    generator = np.random.default_rng(part.seed)
    kept_rows = kept_bytes = 0
    for name, row_group, rows, _ in (groups[at] for at in generator.permutation(len(groups))):
        wanted = np.zeros(rows, dtype=bool)
        wanted[generator.choice(rows, int(np.ceil(rows * share)), replace=False)] = True
        begin = 0
        with part.source.open(name) as stream:
            size = part.source.size(name)
            for batch in readers.read_columns(stream, name, size, part.columns, row_group=row_group):
                part.counts.rows_read += len(batch)
                offered = batch.filter(pa.array(wanted[begin : begin + len(batch)])).slice(0, most - kept_rows)
                begin += len(batch)
                chosen = _fitting(offered, part.max_bytes - kept_bytes)
                kept_rows, kept_bytes = kept_rows + len(chosen), kept_bytes + chosen.nbytes
                part.on_bytes(kept_bytes, part.max_bytes)
                yield chosen
                if len(chosen) < len(offered) or kept_rows == most:
                    return


def _fitting(batch: pa.RecordBatch, room: int) -> pa.RecordBatch:
    """The first rows, as far as they fit."""
    while len(batch) and batch.nbytes > room:
        batch = batch.slice(0, len(batch) // 2)
    return batch


def _of_rows(part: _Part, at: int | None, distinct: set[Any]) -> list[pa.RecordBatch]:
    """Every row gets a random key; those with the smallest stay as far as they fit.

    Args:
        at: the position of the column of classes, all of whose values are added to ``distinct``.
    """
    generator = np.random.default_rng(part.seed)
    limit = min(part.max_bytes, _RESERVOIR_BYTES)
    kept: list[tuple[float, int, int, tuple[Any, ...]]] = []  # a heap, the largest key first; position, bytes, values
    held, largest = 0, 1.0
    types: list[pa.DataType] = []
    total, before = sum(map(part.source.size, part.names)), 0
    for name in part.names:
        size, unpacked = part.source.size(name), 0
        with part.source.open(name) as stream:
            for batch in readers.read_columns(stream, name, size, part.columns):
                types = types or batch.schema.types
                if at is not None:
                    _add_values(batch.column(at), distinct)
                keys = generator.random(len(batch))
                candidates = np.flatnonzero(keys < largest)
                rows = zip(*(column.to_pylist() for column in batch.take(pa.array(candidates)).columns), strict=True)
                for index, row in zip(candidates.tolist(), rows, strict=True):
                    heapq.heappush(kept, (-keys[index], part.counts.rows + index, _size_of(row), row))
                    held += _size_of(row)
                    while held > limit or len(kept) > (part.max_rows or len(kept)):
                        key, _, freed, _ = heapq.heappop(kept)
                        held, largest = held - freed, -key
                part.counts.rows += len(batch)
                unpacked += batch.nbytes
                part.on_bytes(before + min(unpacked, size), total)
        before += size
    part.counts.rows_read = part.counts.rows
    ordered = [row for _, _, _, row in sorted(kept, key=lambda entry: entry[1])]
    return [_batch(ordered[begin : begin + 1000], types) for begin in range(0, len(ordered), 1000)]


def _batch(rows: list[tuple[Any, ...]], types: list[pa.DataType]) -> pa.RecordBatch:
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return pa.record_batch(arrays, names=[str(index) for index in range(len(arrays))])


def _add_values(column: pa.Array, distinct: set[Any]) -> None:
    values = column.flatten() if pa.types.is_large_list(column.type) else column
    distinct.update(pc.unique(values).to_pylist())
    if len(distinct) > tables.MAX_CLASSES:
        raise tables.too_many_classes("label")


def _size_of(row: tuple[Any, ...]) -> int:
    texts = (item for value in row for item in (value if isinstance(value, list) else [value]))
    return _ROW_BYTES + sum(len(text.encode()) if isinstance(text, str) else len(text) if isinstance(text, bytes) else 8
                            for text in texts)  # fmt: skip


def _features(schema: pa.Schema, roles: dict[str, Role], classes: list[str]) -> datasets.Features:
    """What the datasets library calls the columns; images lie in a struct of it."""
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=classes),
        "text": datasets.Value("large_string"),
        "words": datasets.List(datasets.Value("large_string")),
        "tags": datasets.List(datasets.ClassLabel(names=classes)),
    }
    names = (name if schema.get_field_index(name) >= 0 else name.partition(".")[0] for name in roles)
    return datasets.Features({name: kinds[role.kind] for name, role in zip(names, roles.values(), strict=True)})


def _write(path: Path, batches: Iterable[pa.RecordBatch], features: datasets.Features) -> int:
    """Write rows as one parquet file.

    Returns:
        How many there were.
    """
    rows = 0
    schema = features.arrow_schema
    pending: list[pa.RecordBatch] = []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            arrays = [_stored(array, field.type) for array, field in zip(batch.columns, schema, strict=True)]
            pending.append(pa.record_batch(arrays, schema=schema))
            rows += len(batch)
            if sum(waiting.nbytes for waiting in pending) > _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(pending, schema))
                pending = []
        writer.write_table(pa.Table.from_batches(pending, schema))
    return rows


def _stored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_struct(kind):
        return array.cast(kind)
    return pa.StructArray.from_arrays([array.cast(pa.binary()), pa.nulls(len(array), pa.string())], fields=list(kind))


def _write_card(target: Path, names: dict[str, str], config: str | None) -> None:
    """Name the splits as the whole data set does, for the settings that name them."""
    data_files = [{"split": name, "path": f"{split}.parquet"} for split, name in names.items()]
    header = {"configs": [{"config_name": config or "default", "data_files": data_files}]}
    with atomic_path(target / CARD) as temporary:
        temporary.write_text(f"---\n{yaml.safe_dump(header)}---\n", encoding="utf-8")


def sample_names(
    source: Source, roles: Sequence[Role], settings: DataSettings, *, max_bytes: int, seed: int
) -> tuple[list[str], dict[str, Any]]:
    """Choose random images of a folder of images, each with its mask where it has one; nothing is read but the card.

    Two of each class come first, so that no class is lost while there is room for them.

    Args:
        max_bytes: of the files; a test split has a quarter of them at most.

    Returns:
        The names of the files, the card among them, and the facts that :func:`sample_tables` returns.

    Raises:
        KnownError: what :func:`known_core.data.inspect_data` raises of folders; ``dataset_unusable`` where none fits.
    """
    files = inspect_folders(source, roles, settings)
    step = 2 if is_masked(roles) else 1
    test_bytes = max_bytes // _TEST_SHARE if files.test_split.rows else 0
    limits = {"train": (max_bytes - test_bytes, settings.max_examples), "test": (test_bytes, None)}
    names = [CARD] if CARD in source.names() else []
    facts: dict[str, Any] = {"seed": seed}
    for number, (split, part) in enumerate((("train", files.train_split), ("test", files.test_split))):
        if not part.rows:
            continue
        generator = np.random.default_rng((seed, number))
        order = generator.permutation(part.rows)
        if len(part.labels):
            order = order[np.argsort(_rank(part.labels[order]) >= 2, kind="stable")]
        room, most = limits[split]
        kept = 0
        for index in order[:most]:
            example = part.files[index * step : (index + 1) * step]
            size = sum(map(source.size, example))
            if size > room:
                break
            room, kept = room - size, kept + 1
            names += example
        facts[split] = asdict(_Counts(kept, kept, part.rows))
    if not facts.get("train", {}).get("rows_kept"):
        raise unusable(
            f"no image fits into {max_bytes} bytes", "Raise the limit for data sets, or give smaller images."
        )
    return sorted(names), facts


def _rank(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same class come before each."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(labels)) - first
    return rank
