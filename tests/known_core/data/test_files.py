"""Which files are which split: by file name, by folder, by the card, by wish."""

import time
from pathlib import Path
from typing import Any

import pytest

from known_core.data.files import by_words
from known_core.errors import KnownError
from known_core.tasks.image_classification import IMAGE, LABEL
from tests.known_core.data.made import PLAIN, inspect, png, write

IMAGES = (IMAGE, LABEL)


def rows(*labels: int) -> str:
    return "text,label\n" + "".join(f"t,{label}\n" for label in labels)


def splits(path: Path, **settings: Any) -> tuple[list[str], list[str]]:
    """What is trained and evaluated on."""
    files = inspect(path, PLAIN, **settings)
    return files.train_split.files, files.test_split.files


def made(tmp_path: Path, *names: str, card: str | None = None) -> Path:
    files: dict[str, bytes | str] = dict.fromkeys(names, rows(0, 1))
    return write(tmp_path / "d", files | ({"README.md": card} if card is not None else {}))


def card(configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{configs}\n---\n# A data set\n"


@pytest.mark.parametrize(("names", "train", "test"), [
    (["train.csv", "test.csv"], ["train.csv"], ["test.csv"]),
    (["data.csv", "my-test-set.csv"], ["data.csv"], ["my-test-set.csv"]),
    (["train/1.csv", "train/2.csv", "dev/1.csv"], ["train/1.csv", "train/2.csv"], ["dev/1.csv"]),
    (["training.csv", "testing.csv", "valid.csv"], ["training.csv"], ["testing.csv"]),
    (["train.csv", "validation.csv"], ["train.csv"], ["validation.csv"]),
    (["a.csv", "b.csv"], ["a.csv", "b.csv"], []),
    (["test.csv"], ["test.csv"], []),
    (["train-00000-of-00001.csv", "unsupervised-00000-of-00001.csv"], ["train-00000-of-00001.csv"], []),
    (["data-00000-of-00002.csv", "data-00001-of-00002.csv"], ["data-00000-of-00002.csv", "data-00001-of-00002.csv"],
     []),
    (["validation_matched/a.csv", "validation_mismatched/a.csv", "train/a.csv"], ["train/a.csv"],
     ["validation_matched/a.csv", "validation_mismatched/a.csv"]),
    (["Train.CSV", "TEST.csv"], ["Train.CSV"], ["TEST.csv"]),
    (["contest.csv", "attraining.csv"], ["attraining.csv", "contest.csv"], []),
], ids=str)  # fmt: skip
def test_by_name(tmp_path: Path, names: list[str], train: list[str], test: list[str]) -> None:
    assert splits(made(tmp_path, *names)) == (train, test)


def test_groups() -> None:
    assert by_words(["a/test/train.csv", "x-00000-of-00001.parquet"]) == {
        "train": ["a/test/train.csv"], "x": ["x-00000-of-00001.parquet"],
    }  # fmt: skip


@pytest.mark.parametrize(("wishes", "train", "test"), [
    ({}, "train.csv", "test.csv"),
    ({"evaluation_split": "validation"}, "train.csv", "val.csv"),
    ({"evaluation_split": "val"}, "train.csv", "val.csv"),
    ({"evaluation_split": "train"}, "train.csv", None),
    ({"split": "validation"}, "val.csv", "test.csv"),
    ({"split": "test"}, "test.csv", "val.csv"),
    ({"split": "test", "evaluation_split": "train"}, "test.csv", "train.csv"),
], ids=str)  # fmt: skip
def test_by_wish(tmp_path: Path, wishes: dict[str, str], train: str, test: str | None) -> None:
    path = made(tmp_path, "train.csv", "val.csv", "test.csv")
    assert splits(path, **wishes) == ([train], [test] if test else [])


@pytest.mark.parametrize(("wishes", "part"), [
    ({"split": "x"}, "split 'x'"), ({"evaluation_split": "dev2"}, "evaluation_split 'dev2'"),
    ({"evaluation_split": "validation"}, "'validation'"), ({"config": "x"}, "config 'x'"),
], ids=str)  # fmt: skip
def test_wishes_that_cannot_be_met(tmp_path: Path, wishes: dict[str, str], part: str) -> None:
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)") as caught:
        splits(made(tmp_path, "train.csv", "test.csv"), **wishes)
    assert part in caught.value.message
    assert "config" in wishes or "['test', 'train']" in caught.value.hint


def test_no_split_to_train_on(tmp_path: Path) -> None:
    path = made(tmp_path, "corpus-00000-of-00001.csv", "queries-00000-of-00001.csv")
    with pytest.raises(KnownError, match=r"\['corpus', 'queries'\].*\(dataset_unusable\).*\"split\""):
        splits(path)
    assert splits(path, split="queries") == (["queries-00000-of-00001.csv"], [])


# configs


@pytest.mark.parametrize(("config", "train"), [
    ("cola", ["cola/train.csv"]), ("sst2", ["sst2-train.csv"]), ("en-de", ["en-de.csv"]),
])  # fmt: skip
def test_configs_by_name(tmp_path: Path, config: str, train: list[str]) -> None:
    path = made(tmp_path, "cola/train.csv", "cola-2/train.csv", "sst2-train.csv", "sst2x-train.csv", "en-de.csv")
    assert splits(path, config=config) == (train, [])


NAMES = ("data/train-1.csv", "data/train-2.csv", "data/test.csv", "data/deep/test.csv", "other.csv")


@pytest.mark.parametrize(("data_files", "train", "test"), [
    ("other.csv", ["other.csv"], []),
    ("[data/train-1.csv, other.csv]", ["data/train-1.csv", "other.csv"], []),
    ("data/*.csv", ["data/test.csv", "data/train-1.csv", "data/train-2.csv"], []),
    ("'**/test.csv'", ["data/deep/test.csv", "data/test.csv"], []),
    ("'data/**'", sorted(NAMES[:4]), []),
    ("'data/train-[0-9].csv'", ["data/train-1.csv", "data/train-2.csv"], []),
    ("'./data/train-?.csv'", ["data/train-1.csv", "data/train-2.csv"], []),
    ("[{split: train, path: other.csv}, {split: test, path: [data/test.csv]}]", ["other.csv"], ["data/test.csv"]),
    ("{train: data/train-1.csv, validation: other.csv}", ["data/train-1.csv"], ["other.csv"]),
    ("[{split: train, path: data/train-*}, {split: validation, path: other.csv}, {split: test, path: none}]",
     ["data/train-1.csv", "data/train-2.csv"], ["other.csv"]),
    ("[{split: train, path: '*.csv'}, {split: test, path: other.csv}]", ["other.csv"], []),
], ids=str)  # fmt: skip
def test_configs_by_card(tmp_path: Path, data_files: str, train: list[str], test: list[str]) -> None:
    path = made(tmp_path, *NAMES, card=card(f"- config_name: default\n  data_files: {data_files}"))
    assert splits(path) == (train, test)


SEVERAL = """- config_name: a
  data_files: data/train-1.csv
- config_name: b
  data_dir: data/deep
- config_name: c
  data_files: [{split: train, path: data/train-2.csv}, {split: dev_test, path: other.csv}]"""


def test_several_configs(tmp_path: Path) -> None:
    path = made(tmp_path, *NAMES, card=card(SEVERAL))
    with pytest.raises(KnownError, match=r"several configs: \['a', 'b', 'c'\].*\(dataset_unusable\)"):
        splits(path)
    with pytest.raises(KnownError, match=r"no config 'd'.*\['a', 'b', 'c'\]"):
        splits(path, config="d")
    assert splits(path, config="a") == (["data/train-1.csv"], [])
    assert splits(path, config="b") == (["data/deep/test.csv"], [])
    assert splits(path, config="c") == (["data/train-2.csv"], ["other.csv"])


@pytest.mark.parametrize("default", ["default: true", "config_name: default"])
def test_the_default_config(tmp_path: Path, default: str) -> None:
    marked = SEVERAL.replace("- config_name: c", f"- config_name: c\n  {default}") if "true" in default else (
        SEVERAL.replace("config_name: c", default)
    )  # fmt: skip
    assert splits(made(tmp_path, *NAMES, card=card(marked))) == (["data/train-2.csv"], ["other.csv"])


def test_a_card_whose_files_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"README\.md declares files.*\(dataset_unusable\)"):
        splits(made(tmp_path, *NAMES, card=card("- data_files: x.csv")))


@pytest.mark.parametrize("text", [
    "", "# no header", "---\n", "---\nconfigs: 5\n---\n", "---\nconfigs: [5, {path: x}]\n---\n", "---\n{\n---\n",
    "---\nconfigs: [{config_name: [x], data_files: x.csv}]\n---\n", "---\n" + "[" * 10_000 + "\n---\n",
    "---\n\0\n---\n",
    "---\n!!python/object/apply:os.system ['touch x']\n---\n", "x" * 2_000_000,
    "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\ni: &i [*h,*h,*h,*h,*h,*h,*h,*h,*h]\n"
    "configs: [{config_name: *i, data_files: x}]\n---\n",
], ids=range(12))  # fmt: skip
def test_a_card_that_says_nothing(tmp_path: Path, text: str) -> None:
    assert splits(made(tmp_path, "train.csv", "test.csv", card=text)) == (["train.csv"], ["test.csv"])


def test_hostile_patterns_cost_no_time(tmp_path: Path) -> None:
    path = made(tmp_path, "a/" * 60 + "x.csv", card=card(f"- data_files: '{'**/a/' * 500}{'*a' * 200}'"))
    begin = time.perf_counter()
    with pytest.raises(KnownError, match=r"\(dataset_unusable\)"):
        splits(path)
    assert time.perf_counter() - begin < 5
    many = card("- data_files: [" + ",".join(["x"] * 1001) + "]")
    with pytest.raises(KnownError, match=r"more than 1000 patterns.*\(dataset_unusable\)"):
        splits(made(tmp_path, card=many))


# splits without labels


@pytest.mark.parametrize("test", ["text,label\nt,-1\nt,-1\n", "text,label\nt,\n", "text\nt\n"])
def test_a_test_split_without_labels(tmp_path: Path, test: str) -> None:
    path = write(tmp_path / "d", {"train.csv": rows(0, 1), "test.csv": test})
    with pytest.raises(
        KnownError, match=r"'test' has no labels.*\(label_out_of_range\).*\"evaluation_split\": \"train\""
    ):
        inspect(path)
    assert inspect(path, evaluation_split="train").test_split.rows == 0
    write(path, {"validation.csv": rows(1, 0, 1)})
    files = inspect(path)
    assert (files.test_split.files, files.test) == (["validation.csv"], {"0": 1, "1": 2})
    assert files.summary()["splits"] == {"train": "train", "test": "validation"}
    with pytest.raises(KnownError, match=r"\(label_out_of_range\)"):
        inspect(path, evaluation_split="test")


def test_a_test_split_that_lacks_some_labels_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"train.csv": rows(0, 1), "test.csv": rows(0, -1), "validation.csv": rows(0)})
    with pytest.raises(KnownError, match=r"\(label_out_of_range\)"):
        inspect(path)


@pytest.mark.parametrize("labels", [("a\n", "1\n"), ("0\n", "a\n"), ("0\n", "7\n")])
def test_splits_of_other_classes(tmp_path: Path, labels: tuple[str, str]) -> None:
    """Classes are told from all files together; a csv whose labels are not all numbers has texts."""
    train, test = (f"text,label\nt,{label}t,0\nt,1\n" for label in labels)
    files = inspect(write(tmp_path / "d", {"train.csv": train, "test.csv": test}))
    assert files.classes == [str(n) for n in range(8)] if labels == ("0\n", "7\n") else files.classes == ["0", "1", "a"]


def test_files_of_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "d", {"a.csv": rows(0, 1), "b.csv": "sentence,label\nt,0\n"})
    with pytest.raises(KnownError, match=r"b\.csv differs.*\(dataset_unusable\)"):
        inspect(path)


# images in folders


def images(tmp_path: Path, *names: str, text: str | None = None) -> Path:
    files: dict[str, bytes | str] = {name: png(index) for index, name in enumerate(names)}
    return write(tmp_path / "d", files | ({"README.md": text} if text else {}))


@pytest.mark.parametrize(("names", "wishes", "train", "test"), [
    (["train/a/1.png", "train/b/2.png", "val/a/3.png", "test/a/4.png"], {}, 2, ["test/a/4.png"]),
    (["train/a/1.png", "train/b/2.png", "val/a/3.png", "test/a/4.png"], {"evaluation_split": "validation"}, 2,
     ["val/a/3.png"]),
    (["train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"], {"split": "val", "evaluation_split": "train"}, 2,
     ["train/a/1.png", "train/b/2.png"]),
    (["train/a/1.png", "train/b/2.png", "val/a/3.png"], {"evaluation_split": "train"}, 2, []),
    (["set/train/a/1.png", "set/train/b/2.png", "set/test/a/3.png"], {}, 2, ["set/test/a/3.png"]),
    (["train/a/1.png", "train/b/2.png", "test/3.png"], {}, 2, []),
    (["x/a/1.png", "x/b/2.png", "y/a/3.png"], {"config": "x"}, 2, []),
], ids=str)  # fmt: skip
def test_splits_of_images(
    tmp_path: Path, names: list[str], wishes: dict[str, str], train: int, test: list[str]
) -> None:
    files = inspect(images(tmp_path, *names), IMAGES, **wishes)
    assert (files.classes, files.train_split.rows, files.test_split.files) == (["a", "b"], train, test)


def test_the_card_of_an_image_folder(tmp_path: Path) -> None:
    text = card("- data_files: [{split: train, path: '1/**'}, {split: test, path: '2/**'}]")
    files = inspect(images(tmp_path, "1/a/1.png", "1/b/1.png", "2/a/1.png", text=text), IMAGES)
    assert (files.train_split.rows, files.test_split.files) == (2, ["2/a/1.png"])
