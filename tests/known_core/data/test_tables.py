"""Tables of every form: columns, classes, and what a stranger's may not do."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from known_core.data import Role, inspect_data, read_data
from known_core.data import readers as readers_module
from known_core.errors import KnownError
from known_core.spec import DataSettings
from known_core.tasks.image_classification import IMAGE, LABEL
from tests.known_core.data.made import (
    CLASSIFIED,
    PLAIN,
    ROWS,
    TAGGED,
    WRITERS,
    inspect,
    png,
    read,
    source_of,
    texts,
    write,
    write_as,
)  # fmt: skip

NO_METADATA = {"d.csv", "d.tsv", "d.jsonl", "lines/d.json", "list/d.json", "pretty/d.json"}


# every form


@pytest.mark.parametrize("wrapped", ["file", "folder", "zip"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_text_with_a_class_label(tmp_path: Path, name: str, wrapped: str) -> None:
    path = write_as(name, texts(), tmp_path / "d")
    if wrapped != "file":
        path = path.parent
    if wrapped == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "z"), "zip", path))
    files, train, test = read(path, tmp_path)
    assert files.classes == (["0", "1"] if name in NO_METADATA else ["neg", "pos"])
    assert (files.columns, test) == ({"text": "text", "label": "label"}, None)
    assert train.to_dict() == {"text": ROWS["text"], "label": ROWS["label"]}
    assert files.format == {"d.tsv": "csv", "d.jsonl": "json"}.get(name, Path(name).suffix[1:])


@pytest.mark.parametrize("name", WRITERS)
def test_labels_that_are_texts(tmp_path: Path, name: str) -> None:
    rows = {"sentence": ["a", "b", "c"], "category": ["pos", "neg", "pos"]}
    files, train, _ = read(write_as(name, texts(rows, None), tmp_path), tmp_path)
    assert (files.classes, train["label"][:]) == (["neg", "pos"], [1, 0, 1])
    assert files.columns == {"text": "sentence", "label": "category"}
    assert files.train == {"neg": 1, "pos": 2}


@pytest.mark.parametrize("name", WRITERS)
def test_labels_that_are_numbers(tmp_path: Path, name: str) -> None:
    """Eleven classes, one of them without rows: 10 comes after 2, and 3 is there."""
    labels = [10, 0, 1, 2, 4, 5, 6, 7, 8, 9, 2]
    rows = {"text": [f"t{label}" for label in labels], "label": labels}
    files, train, _ = read(write_as(name, texts(rows, None), tmp_path), tmp_path)
    assert files.classes == [str(label) for label in range(11)]
    assert train["label"][:] == labels


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith((".csv", ".tsv"))])
@pytest.mark.parametrize("kind", ["names", "texts", "numbers"])
def test_words_with_tags(tmp_path: Path, name: str, kind: str) -> None:
    numbers = [[0, 1], [2], [0, 0, 1]]
    names = ["O", "B-PER", "I-PER"]
    rows: dict[str, list[Any]] = {"tokens": [["Ada", "is"], ["it"], ["x", "y", "z"]], "ner_tags": numbers}
    features = Features({"tokens": datasets.List(Value("string")), "ner_tags": datasets.List(ClassLabel(names=names))})
    if kind == "texts":
        rows["ner_tags"] = [[names[tag] for tag in tags] for tags in numbers]
    files, train, _ = read(
        write_as(name, texts(rows, features if kind == "names" else None), tmp_path), tmp_path, TAGGED
    )
    expected = {"names": names, "texts": sorted(names), "numbers": ["0", "1", "2"]}[kind]
    if kind == "names" and name in NO_METADATA:
        expected = ["0", "1", "2"]
    assert files.classes == expected
    assert train["tokens"][:] == rows["tokens"]
    named = [[expected[tag] for tag in tags] for tags in train["tags"][:]]
    assert named == [[expected[tag] if kind != "texts" else names[tag] for tag in tags] for tags in numbers]
    assert "train" not in files.summary()
    assert files.summary()["classes"] == expected


@pytest.mark.parametrize("name", WRITERS)
def test_pairs_of_texts(tmp_path: Path, name: str) -> None:
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 1]}
    files, train, _ = read(write_as(name, texts(rows, None), tmp_path), tmp_path)
    assert files.columns == {"text": "premise", "text_pair": "hypothesis", "label": "label"}
    assert train.to_dict() == {"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0, 1]}


@pytest.mark.parametrize("name", WRITERS)
def test_texts_alone(tmp_path: Path, name: str) -> None:
    files, train, _ = read(write_as(name, texts(), tmp_path), tmp_path, PLAIN)
    assert (files.classes, train.to_dict()) == ([], {"text": ROWS["text"]})
    assert files.summary()["train_examples"] == 4


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"train.txt": "one\r\n\n  two \nthrée", "test.txt": "\ufefffour"})
    files, train, test = read(path, tmp_path, PLAIN)
    assert test is not None
    assert (files.format, train["text"][:], test["text"][:]) == ("text", ["one", "two", "thrée"], ["four"])


def test_text_files_beside_tables_are_no_data(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"a.csv": "text,label\nx,1\ny,0\n", "notes.txt": "hello", "config.json": "{}"})
    assert inspect(path).train_split.files == ["a.csv"]


def test_dictionaries_of_arrow(tmp_path: Path) -> None:
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    pq.write_table(
        pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode(), "label": labels}), tmp_path / "d.parquet"
    )
    files, train, _ = read(tmp_path / "d.parquet", tmp_path)
    assert (files.classes, train.to_dict()) == (["a", "b"], {"text": ["x", "y", "x"], "label": [1, 0, 1]})


@pytest.mark.parametrize("split", [False, True])
def test_save_to_disk(tmp_path: Path, split: bool) -> None:
    if split:
        datasets.DatasetDict(train=texts(), test=texts().select([0, 1])).save_to_disk(tmp_path / "d")
    else:
        texts().save_to_disk(tmp_path / "d")
        write(tmp_path / "d", {"cache-1234.arrow": b"what Dataset.map leaves behind"})
    files, train, test = read(tmp_path / "d", tmp_path)
    assert (files.format, files.classes, train["label"][:]) == ("arrow", ["neg", "pos"], [1, 0, 1, 0])
    assert (test["label"][:] if test is not None else None) == ([1, 0] if split else None)


def test_images_in_tables(tmp_path: Path) -> None:
    features = Features({"img": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": png(value), "path": None} for value in (1, 2)], "label": [0, 1]}
    for name in ("d.parquet", "stream/d.arrow"):
        files, train, _ = read(write_as(name, texts(rows, features), tmp_path), tmp_path / name[:2], (IMAGE, LABEL))
        assert (files.columns["image"], files.classes) == ("img.bytes", ["a", "b"])
        assert train["image"][:] == [png(1), png(2)]


def test_images_and_masks_in_tables(tmp_path: Path) -> None:
    features = Features({"image": datasets.Image(), "annotation": datasets.Image()})
    rows = {"image": [{"bytes": png(1), "path": None}], "annotation": [{"bytes": png(2), "path": None}]}
    roles = (IMAGE, Role("mask", "image", ("mask", "annotation")))
    files, train, _ = read(write_as("d.parquet", texts(rows, features), tmp_path), tmp_path, roles)
    assert (files.columns["mask"], train["mask"][:]) == ("annotation.bytes", [png(2)])


@pytest.mark.parametrize("name", WRITERS)
def test_many_rows(tmp_path: Path, name: str) -> None:
    """More than a batch, a block and a row group."""
    rows = {"text": [f"row {index} " * (index % 50) + "end" for index in range(2500)], "label": [0, 1] * 1250}
    _, train, _ = read(write_as(name, texts(rows, None), tmp_path), tmp_path)
    assert (train["text"][:], train["label"][:]) == (rows["text"], rows["label"])


# wishes


def test_columns_by_wish(tmp_path: Path) -> None:
    path = write(tmp_path, {"d.csv": "text,review,stars,label\nno,good,1,0\nno,bad,0,0\n"}) / "d.csv"
    files, train, _ = read(path, tmp_path, columns={"text": "review", "label": "stars"})
    assert files.columns == {"text": "review", "label": "stars"}
    assert train.to_dict() == {"text": ["good", "bad"], "label": [1, 0]}


@pytest.mark.parametrize(("columns", "part"), [
    ({"text": "x"}, "no column 'x'"), ({"picture": "text"}, "['picture']"), ({"text": "stars"}, "not text"),
    ({"label": "score"}, "double"), ({"text": "mixed"}, "several types"), ({"label": "nothing"}, "empty"),
    ({"text": "twice"}, "no column 'twice'"),
])  # fmt: skip
def test_wrong_wishes(tmp_path: Path, columns: dict[str, str], part: str) -> None:
    table = pa.table({
        "text": ["a", "b"], "stars": [0, 1], "label": [0, 1], "score": [0.5, 1.5], "mixed": pa.nulls(2),
        "nothing": pa.nulls(2),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)") as caught:
        inspect(tmp_path / "d.parquet", columns=columns)
    assert part in str(caught.value)
    assert caught.value.hint


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"d.csv": "words,kind\na,b\n"}) / "d.csv"
    with pytest.raises(KnownError, match=r"\['words', 'kind'\].*\(dataset_unusable\).*\"columns\": \{\"text\""):
        inspect(path)


@pytest.mark.parametrize("text", ["text,text,label\na,b,1\n", '[{"text": 1, "label": 0}, {"text": "a", "label": 1}]'])
def test_columns_that_are_ambiguous(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, {"d.json" if text[0] == "[" else "d.csv": text}) / ("d.json" if text[0] == "[" else "d.csv")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        inspect(path)


def test_other_columns_of_several_types_do_not_matter(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": 0, "meta": 1}, {"text": "b", "label": 1, "meta": "x", "more": {"a": [1]}}]
    path = write(tmp_path, {"d.jsonl": "\n".join(map(json.dumps, lines))}) / "d.jsonl"
    _, train, _ = read(path, tmp_path)
    assert train.to_dict() == {"text": ["a", "b"], "label": [0, 1]}


# labels and rows that are incomplete


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "d.tsv"])
@pytest.mark.parametrize(("rows", "code"), [
    ({"text": ["a", None, "b"], "label": [0, 1, 1]}, "dataset_unusable"),
    ({"text": ["a", "b", "c"], "label": [0, None, 1]}, "dataset_unusable"),
    ({"text": ["a", "b", "c"], "label": [0, 1, -1]}, "label_out_of_range"),
    ({"text": ["a", "b", "c"], "label": ["x", None, "y"]}, "dataset_unusable"),
    ({"text": ["a", "b", "c"], "sentence2": ["a", None, "b"], "label": [0, 1, 1]}, "dataset_unusable"),
], ids=["text", "label", "-1", "label text", "pair"])  # fmt: skip
def test_rows_that_lack_something(tmp_path: Path, name: str, rows: dict[str, list[Any]], code: str) -> None:
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        read(write_as(name, texts(rows, None), tmp_path), tmp_path)


@pytest.mark.parametrize("rows", [
    {"tokens": [["a", "b"], ["c"]], "tags": [[0, 1], [0, 1]]},
    {"tokens": [["a", None], ["c"]], "tags": [[0, 1], [0]]},
    {"tokens": [["a", "b"], None], "tags": [[0, 1], [0]]},
    {"tokens": [["a", "b"], ["c"]], "tags": [[0, None], [0]]},
    {"tokens": [["a", "b"], ["c"]], "tags": [[0, 1], None]},
    {"tokens": [[1, 2], [3]], "tags": [[0, 1], [0]]},
    {"tokens": ["a b", "c"], "tags": [[0, 1], [0]]},
    {"tokens": [["a", "b"], ["c"]], "tags": [[0.5, 1], [0]]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl", "file/d.arrow"])
def test_words_and_tags_that_do_not_fit(tmp_path: Path, name: str, rows: dict[str, list[Any]]) -> None:
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        read(write_as(name, texts(rows, None), tmp_path), tmp_path, TAGGED)


# a stranger's


@pytest.mark.parametrize(("name", "content"), [
    ("d.csv", b""), ("d.csv", b"text,label\n"), ("d.csv", b"\x00\x01\x02"), ("d.csv", b"text,label\n\xff\xfe,1\n"),
    ("d.csv", b'text,label\n"open,1\nb,0\n'), ("d.csv", b"text,label\na\nb,0\n"), ("d.csv", b"text,label\na,1,2\n"),
    ("d.csv", b"text,label," + b",".join(b"c%d" % index for index in range(1_000_000)) + b"\n"),
    ("d.csv", b'"te\nxt",' + b"," * 1_000_000 + b"\n"), ("d.csv", b"text;label\na;1\n"),
    ("d.jsonl", b""), ("d.jsonl", b"\n\n"), ("d.jsonl", b"{}"), ("d.jsonl", b"5\n6\n"), ("d.jsonl", b"{"),
    ("d.jsonl", b'{"text": "a", "label": 1}\n{"text"'), ("d.jsonl", b'{"text": "\xff", "label": 1}'),
    ("d.jsonl", b'{"text": ' + b"[" * 100_000), ("d.jsonl", b"[" * 1_000_000),
    ("d.jsonl", b'{"a":' * 100_000), ("d.jsonl", b'{"text": "\\ud800", "label": 1}\n{"text": "a", "label": 0}'),
    ("d.jsonl", b'{"text": "a", "label": 1' + b"0" * 30 + b'}\n{"text": "a", "label": 0}'),
    ("d.jsonl", b'{"text": "a", "label": 1' + b"0" * 10_000 + b"}"),
    ("d.jsonl", json.dumps({f"c{index}": 1 for index in range(200_000)}).encode()),
    ("d.json", b"[1, 2, 3]"), ("d.json", b'"text"'), ("d.json", b'[{"text": "a", "label": 1}, {"text": '),
    ("d.json", b'{"data": [{"text": "a", "label": 1}]}'),
    ("d.arrow", b""), ("d.arrow", b"ARROW1\0\0"), ("d.arrow", b"\xff" * 100),
    ("d.arrow", b"\xff\xff\xff\xff\xf0\xff\xff\x7f"),
    ("d.txt", b""), ("d.txt", b" \n \n"), ("d.txt", b"\xff\xfe"),
])  # fmt: skip
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path / "d", {name: content})
    with pytest.raises(KnownError, match=r"\((dataset_unusable|label_out_of_range)\)") as caught:
        read(tmp_path / "d", tmp_path, PLAIN if name.endswith("txt") else CLASSIFIED)
    assert caught.value.hint
    assert len(caught.value.message) < 1000


def test_nul_bytes_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, {"d.csv": b"text,label\na\0b,1\nc,0\n"}) / "d.csv"
    assert read(path, tmp_path)[1]["text"][:] == ["a\0b", "c"]


@pytest.mark.parametrize(("name", "before", "after"), [
    ("d.csv", b"text,label\n", b",1\n"), ("d.csv", b'text,label\n"', b'",1\n'),
    ("d.jsonl", b'{"text": "', b'", "label": 1}\n'), ("d.json", b'[{"text": "', b'", "label": 1}]'),
    ("d.txt", b"", b""),
])  # fmt: skip
def test_a_giant_cell_in_text(
    tmp_path: Path, name: str, before: bytes, after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "d.txt":
        monkeypatch.setattr(readers_module, "MAX_CELL_BYTES", 1 << 20)
    giant = b"a" * (100_000_000 if name == "d.txt" else 3_000_000)
    write(tmp_path / "d", {name: before + giant + after})
    with pytest.raises(KnownError, match=r"\(row_limit\)"):
        inspect(tmp_path / "d", PLAIN)


@pytest.mark.parametrize(("name", "column"), [("d.parquet", "text"), ("stream/d.arrow", "label")])
def test_a_giant_cell_in_a_table(tmp_path: Path, name: str, column: str) -> None:
    rows = {"text": ["a", "b"], "label": ["x", "y"]} | {column: ["a" * 100_000_000, "b"]}
    with pytest.raises(KnownError, match=r"\(row_limit\)"):
        read(write_as(name, texts(rows, None), tmp_path), tmp_path)


@pytest.mark.parametrize("kind", ["text", "label", "tokens", "tags"])
def test_a_parquet_bomb(tmp_path: Path, kind: str) -> None:
    """A few kilobytes that say of many rows that they hold the same long text, or of one row a billion numbers."""
    count = 20_000
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array(["a" * 1_000_000]))
    table = pa.table({"text": long, "label": pa.array(["x", "y"] * (count // 2))})
    roles: tuple[Role, ...] = CLASSIFIED
    if kind == "label":
        table = pa.table({"text": ["a"] * count, "label": long})
    if kind == "tokens":
        offsets = pa.array(np.arange(count + 1, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, long)
        table, roles = pa.table({"tokens": lists, "tags": [[0]] * count}), TAGGED
    if kind == "tags":
        zeros = pa.array(np.zeros(20_000_000, dtype=np.int8))
        lists = pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)
        table, roles = pa.table({"tokens": [["a"]], "tags": lists}), TAGGED
    pq.write_table(table, tmp_path / "d.parquet", compression="zstd")
    assert (tmp_path / "d.parquet").stat().st_size < 300_000
    with pytest.raises(KnownError, match=r"\(row_limit\)"):
        read(tmp_path / "d.parquet", tmp_path, roles)


def test_an_arrow_bomb(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, dtype=np.int32)), pa.array(["a" * 1_000_000]))
    table = pa.table({"text": long, "label": ["x", "y"] * 10_000})
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(KnownError, match=r"\(row_limit\)"):
        read(tmp_path / "d.arrow", tmp_path)


def test_a_giant_row_of_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "MAX_CELL_BYTES", 10_000)
    cells = ",".join(['"' + "a\n" * 1000 + '"'] * 9)
    write(tmp_path / "d", {"d.csv": f"text,label,{','.join('cdefghi')}\n{cells}\n"})
    with pytest.raises(KnownError, match=r"\(row_limit\)"):
        inspect(tmp_path / "d")
    write(tmp_path / "d", {"d.csv": "text,label\n" + "".join(f"{'a' * 9000},{n % 2}\n" for n in range(5))})
    assert inspect(tmp_path / "d").train_split.rows == 5


def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "MAX_ROWS", 3)
    for name in WRITERS:
        for roles in (CLASSIFIED, PLAIN):
            with pytest.raises(KnownError, match=r"\(row_limit\)"):
                inspect(write_as(name, texts(), tmp_path / name), roles)


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("known_core.data.tables.MAX_CLASSES", 2)
    rows = {"text": ["a", "b", "c"], "label": ["x", "y", "z"]}
    with pytest.raises(KnownError, match=r"more than 2 classes.*\(dataset_unusable\)"):
        inspect(write_as("d.csv", texts(rows, None), tmp_path))


@pytest.mark.parametrize("offsets", [[0, 1, 1_000_000], [0, 5, 2], [-7, 1, 2]])
@pytest.mark.parametrize("column", ["text", "label"])
def test_arrow_with_bad_offsets(tmp_path: Path, offsets: list[int], column: str) -> None:
    """Reading such an array would read memory that is not its own."""
    fine, other = pa.array(["abcde", "fgh"]), pa.array(["x", "y"])
    batch = pa.record_batch([fine, other] if column == "text" else [other, fine], names=["text", "label"])
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = (tmp_path / "d.arrow").read_bytes()
    there, instead = np.array([0, 5, 8], dtype="<i4").tobytes(), np.array(offsets, dtype="<i4").tobytes()
    assert content.count(there) == 1
    (tmp_path / "d.arrow").write_bytes(content.replace(there, instead))
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        read(tmp_path / "d.arrow", tmp_path)


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_text_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    broken = pa.array([b"\xff\xfe", b"ok"]).view(pa.string())
    table = pa.table({"text": broken, "label": ["x", "y"]})
    if name == "d.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        read(tmp_path / name, tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_s_name_that_is_not_utf8(tmp_path: Path, nested: bool) -> None:
    values = pa.array([{"nöme": 1}]) if nested else pa.array([1])
    table = pa.table({"text" if nested else "nöme": values, "label": ["x"]})
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "d.arrow").read_bytes()
    (tmp_path / "d.arrow").write_bytes(content.replace("nöme".encode(), b"n\xff\xffme"))
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        read(tmp_path / "d.arrow", tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: write_as(name, texts(), folder).read_bytes() for name in WRITERS}


@hypothesis_settings(max_examples=100)
@given(st.data())
def test_whatever_the_bytes_an_error_is_a_known_error(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
        content[position] = value
    cut = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        content = content[:cut] + data.draw(st.binary(max_size=20)) + content[cut:]
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    path = write(folder, {f"d{Path(name).suffix}": bytes(content)})
    for file in path.iterdir():
        if file.suffix != Path(name).suffix:
            file.unlink()
    try:
        files = inspect_data(source_of(path), CLASSIFIED, DataSettings())
        read_data(path, files, CLASSIFIED, tmp_path_factory.getbasetemp() / "fuzzed")
    except KnownError as error:
        assert error.code in ("dataset_unusable", "row_limit", "label_out_of_range")  # noqa: PT017
