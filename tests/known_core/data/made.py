"""Data sets as people make them, for the tests of known_core.data."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image

from known_core.checkpoint.source import Source, open_source, unpack
from known_core.data import DataFiles, Role, inspect_data, read_data
from known_core.spec import DataSettings
from known_core.tasks.image_classification import LABEL
from known_core.tasks.texts import TEXT, TEXT_PAIR
from known_core.tasks.token_classification import TAGS, WORDS

CLASSIFIED = (TEXT, TEXT_PAIR, LABEL)
TAGGED = (WORDS, TAGS)
PLAIN = (TEXT,)
TEXTS = datasets.Features(
    {
        "id": datasets.Value("int32"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
    }
)
ROWS: dict[str, list[Any]] = {
    "id": [7, 8, 9, 10], "text": ["good", 'it\'s, "so" bad', "ünïcode\nline", "2020-01-01"], "label": [1, 0, 1, 0],
}  # fmt: skip


def texts(rows: Mapping[str, Any] | None = None, features: datasets.Features | None = TEXTS) -> datasets.Dataset:
    return datasets.Dataset.from_dict(dict(rows or ROWS), features=features)


def arrow_file(rows: datasets.Dataset, path: Path) -> None:
    table = rows.data.table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(3, len(rows) // 4))


def arrow_stream(rows: datasets.Dataset, path: Path) -> None:
    table = rows.data.table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(3, len(rows) // 4))


WRITERS: dict[str, Callable[[datasets.Dataset, Path], Any]] = {
    "d.parquet": lambda rows, path: rows.to_parquet(path),
    "d.csv": lambda rows, path: rows.to_csv(path),
    "d.tsv": lambda rows, path: rows.to_csv(path, sep="\t"),
    "d.jsonl": lambda rows, path: rows.to_json(path),
    "lines/d.json": lambda rows, path: rows.to_json(path),
    "list/d.json": lambda rows, path: rows.to_json(path, batch_size=10_000, lines=False, orient="records"),
    "pretty/d.json": lambda rows, path: rows.to_json(path, batch_size=10_000, lines=False, orient="records", indent=2),
    "file/d.arrow": arrow_file,
    "stream/d.arrow": arrow_stream,
}


def write_as(name: str, rows: datasets.Dataset, folder: Path) -> Path:
    """One file of the form that its name says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[name](rows, path)
    return path


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def source_of(path: Path) -> Source:
    return open_source(path, single_file_name=f"data{path.suffix}")


def inspect(path: Path, roles: Sequence[Role] = CLASSIFIED, **settings: Any) -> DataFiles:
    return inspect_data(source_of(path), roles, DataSettings(**settings))


def read(
    path: Path, tmp_path: Path, roles: Sequence[Role] = CLASSIFIED, **settings: Any
) -> tuple[DataFiles, datasets.Dataset, datasets.Dataset | None]:
    """Inspect as it is, unpack, inspect again, and read, as a job does."""
    seen = inspect(path, roles, **settings)
    unpack(path, tmp_path / "unpacked", single_file_name=f"data{path.suffix}")
    files = inspect(tmp_path / "unpacked", roles, **settings)
    assert (files.summary(), files.train_split.labels.tolist()) == (seen.summary(), seen.train_split.labels.tolist())
    return files, *read_data(tmp_path / "unpacked", files, roles, tmp_path / "cache")


def png(value: int = 0, size: int = 4, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size, size), value if mode == "L" else (value,) * 3).save(stream, "PNG")
    return stream.getvalue()
