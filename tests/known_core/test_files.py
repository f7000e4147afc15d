"""Files that are whole or absent."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from known_core.files import (
    atomic_folder,
    atomic_path,
    canonical_json,
    link_or_copy,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)  # fmt: skip

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _values, max_size=5))
def test_canonical_json_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(turned)
    assert json.loads(canonical_json(value)) == value


def test_canonical_json_is_pinned() -> None:
    assert canonical_json({"b": [1, 0.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,0.5]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_hashes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # over one chunk
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data)
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_path_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(target) as temporary:  # noqa: PT012
        (temporary / "half").write_text("x")
        raise RuntimeError("stop")
    assert list(target.parent.iterdir()) == []
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("x")
    assert (target / "sub" / "a").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        left = temporary
    left = left.with_name(left.name.replace(str(os.getpid()), "4194304"))  # no process has a larger id
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "old").write_text("x")
    target.rmdir()
    with atomic_folder(target) as temporary:
        assert not left.exists()
        (temporary / "new").write_text("y")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_the_first_of_two_that_make_the_same_folder_wins(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as slow:
        with atomic_folder(tmp_path / "folder") as fast:
            (fast / "result").write_text("fast")
        slow.mkdir()  # gone with the end of the other; were it there, the end would be the same
        (slow / "result").write_text("slow")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "result").read_text() == "fast"


def test_json_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert read_json(tmp_path / "a.json") == {"b": "é", "a": [1]}
    assert (tmp_path / "a.json").read_text().startswith('{\n  "b"')
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("inf"))
    assert read_json(tmp_path / "a.json") == {"b": "é", "a": [1]}


def test_link_or_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    link_or_copy(tmp_path / "a", tmp_path / "sub" / "b")
    assert (tmp_path / "sub" / "b").samefile(tmp_path / "a")

    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "sub" / "c")
    assert (tmp_path / "sub" / "c").read_bytes() == b"x"
    assert not (tmp_path / "sub" / "c").samefile(tmp_path / "a")
