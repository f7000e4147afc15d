"""A sample of a data set on the Hub, of which little is transferred."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from known_core.checkpoint.source import FolderSource, Source
from known_core.data import Role, inspect_data, read_data
from known_core.data.sampling import sample_names, sample_tables
from known_core.errors import KnownError
from known_core.files import sha256_tree
from known_core.hub import Hub, HubRef
from known_core.hub import client as client_module
from known_core.spec import DataSettings
from known_core.tasks.image_classification import IMAGE, LABEL
from tests.hub.server import LocalHub
from tests.known_core.data.made import CLASSIFIED, PLAIN, TAGGED, TEXTS, WRITERS, png, texts

MASK = Role("mask", "image", ("mask",))
SIZE = 10_000
LINES = [f"{index} {np.random.default_rng(index).bytes(300).hex()}" for index in range(SIZE)]
Remote = Callable[[dict[str, bytes]], Source]
NUMBERED = tuple(name for name in WRITERS if name.endswith(("csv", "jsonl", "parquet")) or name.startswith("file"))


@pytest.fixture
def remote(hub: LocalHub, client: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """Files on the Hub as a source; those above 10 kB are read in parts."""
    monkeypatch.setattr(client_module, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(client_module, "READAHEAD_BYTES", 1 << 15)

    def made(files: dict[str, bytes]) -> Source:
        hub.add("datasets", "alice/d", files)
        opened = Hub(hub.url, None, tmp_path / "hub-cache", 1 << 40)
        return opened.source(opened.resolve(HubRef("alice/d", kind="dataset")))

    return made


def sample(source: Source, target: Path, roles: Any = CLASSIFIED, **wishes: Any) -> dict[str, Any]:
    limits = {"max_bytes": wishes.pop("max_bytes", 300_000), "seed": wishes.pop("seed", 0)}
    return sample_tables(source, roles, DataSettings(**wishes), target, on_bytes=lambda done, total: None, **limits)


def many(features: datasets.Features | None = TEXTS) -> datasets.Dataset:
    """Rows whose classes are sorted, and whose numbers are their ids."""
    return texts({"id": range(SIZE), "text": LINES, "label": np.repeat([0, 1], SIZE // 2).tolist()}, features)


def as_bytes(name: str, rows: datasets.Dataset, tmp_path: Path, row_group_size: int = 1000) -> bytes:
    path = tmp_path / "made" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("parquet"):
        pq.write_table(rows.data.table, path, row_group_size=row_group_size)
    else:
        WRITERS[name](rows, path)
    return path.read_bytes()


def test_of_a_large_parquet_little_is_read(remote: Remote, hub: LocalHub, tmp_path: Path) -> None:
    content = as_bytes("d.parquet", many(), tmp_path, row_group_size=200)
    source = remote({"data/train-00000-of-00001.parquet": content, "README.md": b"# card"})
    before = hub.body_bytes
    facts = sample(source, tmp_path / "a", max_bytes=200_000)
    assert hub.body_bytes - before < len(content) // 2
    assert sum(file.stat().st_size for file in (tmp_path / "a").iterdir()) < 200_000
    kept = facts["train"]["rows_kept"]
    assert facts == {"seed": 0, "train": {"rows_read": facts["train"]["rows_read"], "rows_kept": kept, "rows": SIZE}}
    assert 200 < kept < facts["train"]["rows_read"] < SIZE // 2
    files = inspect_data(FolderSource(tmp_path / "a"), CLASSIFIED, DataSettings())
    train, _ = read_data(tmp_path / "a", files, CLASSIFIED, tmp_path / "cache")
    assert files.classes == ["neg", "pos"]
    assert min(files.train.values()) > kept // 5
    assert len(set(train["text"])) == kept
    assert all(
        LINES.index(text) // (SIZE // 2) == label
        for text, label in zip(train["text"][:50], train["label"][:50], strict=True)
    )
    assert (
        datasets.Features.from_arrow_schema(pq.read_schema(tmp_path / "a" / "train.parquet"))["label"] == TEXTS["label"]
    )


@pytest.mark.parametrize("name", NUMBERED)
def test_any_form(remote: Remote, tmp_path: Path, name: str) -> None:
    rows = many(None)
    files = {f"train{Path(name).suffix}": as_bytes(name, rows, tmp_path),
             f"test{Path(name).suffix}": as_bytes(name, rows.select(range(4500, 5500)), tmp_path)}  # fmt: skip
    source = remote(files)
    facts = sample(source, tmp_path / "a")
    again = sample(source, tmp_path / "b")
    other = sample(source, tmp_path / "c", seed=1)
    assert facts == again
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b") != sha256_tree(tmp_path / "c")
    assert facts["train"]["rows"] == other["train"]["rows"] == SIZE
    assert facts["test"]["rows"] == 1000
    seen = inspect_data(FolderSource(tmp_path / "a"), CLASSIFIED, DataSettings())
    assert (seen.classes, seen.train_split.name, seen.test_split.name) == (["0", "1"], "train", "test")
    for split, part, room in (("train", seen.train_split, 225_000), ("test", seen.test_split, 75_000)):
        assert part.rows == facts[split]["rows_kept"]
        assert room // 4 < part.rows * 700 < room * 1.5
        assert 0.2 < part.labels.mean() < 0.8
    train, _ = read_data(tmp_path / "a", seen, CLASSIFIED, tmp_path / "cache")
    assert set(train["text"]) <= set(LINES)


@pytest.mark.parametrize("name", ["d.parquet", "d.csv"])
@pytest.mark.parametrize("count", [10, 777])
def test_so_many_examples(remote: Remote, tmp_path: Path, name: str, count: int) -> None:
    source = remote({name: as_bytes(name, many(), tmp_path)})
    facts = sample(source, tmp_path / "a", PLAIN, max_bytes=10**8, max_examples=count)
    assert facts["train"]["rows_kept"] == count
    assert facts["train"]["rows"] == SIZE


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
def test_a_data_set_that_fits_is_whole(remote: Remote, tmp_path: Path, name: str) -> None:
    rows = texts({"tokens": [["a", "b"], [], ["c"]], "tags": [["X", "O"], [], ["O"]]}, None)
    source = remote({name: as_bytes(name, rows, tmp_path)})
    assert sample(source, tmp_path / "a", TAGGED)["train"] == {"rows_read": 3, "rows_kept": 3, "rows": 3}
    files = inspect_data(FolderSource(tmp_path / "a"), TAGGED, DataSettings())
    train, _ = read_data(tmp_path / "a", files, TAGGED, tmp_path / "cache")
    assert files.classes == ["O", "X"]
    assert sorted(zip(train["tokens"], train["tags"], strict=True)) == [([], []), (["a", "b"], [1, 0]), (["c"], [0])]


def test_images_in_parquet(remote: Remote, tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"img": [{"bytes": png(n), "path": f"{n}.png"} for n in range(100)], "label": [n % 2 for n in range(100)]}
    source = remote({"d.parquet": as_bytes("d.parquet", texts(rows, features), tmp_path)})
    columns = {"image": "img", "label": "label"}
    facts = sample(source, tmp_path / "a", (IMAGE, LABEL), max_bytes=5000, columns=columns)
    files = inspect_data(FolderSource(tmp_path / "a"), (IMAGE, LABEL), DataSettings(columns=columns))
    train, _ = read_data(tmp_path / "a", files, (IMAGE, LABEL), tmp_path / "cache")
    assert (files.classes, files.columns["image"]) == (["a", "b", "c"], "img.bytes")
    assert 10 < len(train) == facts["train"]["rows_kept"] < 100
    values = [[png(n) for n in range(100)].index(image) for image in train["image"]]
    assert [value % 2 for value in values] == train["label"][:]


def test_the_settings_read_the_sample_as_they_read_the_whole(remote: Remote, tmp_path: Path) -> None:
    rows = texts({"body": ["a", "b", "c"], "kind": ["x", "y", "x"]}, None)
    names = ("one/corpus-00000-of-00001.csv", "one/dev-00000-of-00001.csv", "two/corpus-00000-of-00001.csv")
    source = remote(dict.fromkeys(names, as_bytes("d.csv", rows, tmp_path)))
    wishes: dict[str, Any] = {"config": "one", "split": "corpus", "evaluation_split": "validation",
                              "columns": {"text": "body", "label": "kind"}}  # fmt: skip
    sample(source, tmp_path / "a", **wishes)
    whole = inspect_data(source, CLASSIFIED, DataSettings(**wishes))
    part = inspect_data(FolderSource(tmp_path / "a"), CLASSIFIED, DataSettings(**wishes))
    assert (part.classes, part.train, part.test) == (whole.classes, whole.train, whole.test)
    assert (part.columns, part.summary()["splits"]) == (whole.columns, whole.summary()["splits"])


@pytest.mark.parametrize("name", ["d.parquet", "d.csv"])
def test_what_cannot_be_sampled(remote: Remote, tmp_path: Path, name: str) -> None:
    source = remote({name: as_bytes(name, many(), tmp_path)})
    with pytest.raises(KnownError, match=r"fits into 10 bytes.*\(dataset_unusable\)"):
        sample(source, tmp_path / "a", max_bytes=10)
    with pytest.raises(KnownError, match=r"no tables.*\(dataset_unusable\)"):
        sample(remote({"a.bin": b""}), tmp_path / "b")
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        sample(remote({name: b"a\0\xff"}), tmp_path / "c")


@pytest.mark.parametrize("name", ["d.parquet", "d.csv"])
def test_progress_can_end_it(remote: Remote, tmp_path: Path, name: str) -> None:
    source = remote({name: as_bytes(name, many(), tmp_path)})
    calls: list[tuple[int, int]] = []

    def count(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 3:
            raise KnownError("canceled", "enough")

    with pytest.raises(KnownError, match="canceled"):
        sample_tables(source, CLASSIFIED, DataSettings(), tmp_path / "a", max_bytes=10**6, seed=0, on_bytes=count)
    assert all(0 <= done <= total for done, total in calls)
    assert not list((tmp_path / "a").glob("*")) if (tmp_path / "a").exists() else True


# folders of images


def test_names_of_images(remote: Remote, hub: LocalHub) -> None:
    files = {f"train/{'abc'[n % 2]}/{n}.png": png() for n in range(200)} | {
        "train/c/1.png": png(),
        "train/c/2.png": png(),
    }
    files |= {f"test/a/{n}.png": png() for n in range(50)} | {"README.md": b"# card"}
    source = remote(files)
    before = hub.body_bytes
    names, facts = sample_names(source, (IMAGE, LABEL), DataSettings(), max_bytes=40 * len(png()), seed=0)
    assert hub.body_bytes - before < 100
    classes = Counter(name.split("/")[1] for name in names if name.startswith("train"))
    assert min(classes.values()) >= 2
    assert classes["c"] == 2
    assert facts == {"seed": 0, "train": {"rows_read": 30, "rows_kept": 30, "rows": 202},
                     "test": {"rows_read": 10, "rows_kept": 10, "rows": 50}}  # fmt: skip
    assert len(names) == 41
    assert "README.md" in names
    assert sample_names(source, (IMAGE, LABEL), DataSettings(), max_bytes=40 * len(png()), seed=0) == (names, facts)
    assert sample_names(source, (IMAGE, LABEL), DataSettings(), max_bytes=40 * len(png()), seed=1)[0] != names
    few, _ = sample_names(source, (IMAGE, LABEL), DataSettings(max_examples=10), max_bytes=10**9, seed=0)
    assert len([name for name in few if name.startswith("train")]) == 10
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        sample_names(source, (IMAGE, LABEL), DataSettings(), max_bytes=1, seed=0)


def test_names_of_images_with_masks(remote: Remote) -> None:
    source = remote({f"{kind}/{n}.png": png() for n in range(20) for kind in ("images", "masks")})
    names, facts = sample_names(source, (IMAGE, MASK), DataSettings(), max_bytes=10 * len(png()), seed=0)
    assert facts["train"] == {"rows_read": 5, "rows_kept": 5, "rows": 20}
    assert [name.replace("images", "masks") for name in names[:5]] == names[5:]
