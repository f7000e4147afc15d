"""Folders, zips and single files; hostile archives."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings

from known_core.checkpoint import source
from known_core.checkpoint.source import FileSource, FolderSource, ZipSource, open_source, unpack
from known_core.errors import KnownError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 20, "sub/note.txt": "für".encode()}


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    opened = open_source(path, single_file_name="model.safetensors")
    found = {}
    for name in opened.names():
        with opened.open(name) as stream:
            found[name] = stream.read()
        assert opened.size(name) == len(found[name])
    return found


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def refused(path: Path, code: str) -> KnownError:
    """Opening refuses, and unpacking leaves nothing behind."""
    target = path.parent / "unpacked"
    for action in (
        lambda: open_source(path, single_file_name="x").names(),
        lambda: unpack(path, target, single_file_name="x"),
    ):
        with pytest.raises(KnownError, match=rf"\({code}\)") as caught:
            action()
    assert not target.exists()
    return caught.value


def test_folder_zip_and_wrapped_zip_are_the_same_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", FILES)
    plain = make_zip(tmp_path / "plain.zip", FILES)
    stored = make_zip(tmp_path / "stored.zip", FILES, zipfile.ZIP_STORED)
    wrapped = make_zip(tmp_path / "wrapped.zip", {f"my model/{name}": data for name, data in FILES.items()})
    for index, path in enumerate((folder, plain, stored, wrapped)):
        assert read_all(path) == FILES
        unpack(path, tmp_path / f"out-{index}", single_file_name="unused")
        assert folder_bytes(tmp_path / f"out-{index}") == FILES


def test_kinds_of_sources(tmp_path: Path) -> None:
    single = tmp_path / "weights.bin"
    single.write_bytes(b"abc")
    assert isinstance(open_source(tmp_path, single_file_name="m"), FolderSource)
    assert isinstance(open_source(single, single_file_name="m"), FileSource)
    assert isinstance(open_source(make_zip(tmp_path / "z.zip", FILES), single_file_name="m"), ZipSource)
    assert read_all(single) == {"model.safetensors": b"abc"}
    unpack(single, tmp_path / "out", single_file_name="model.safetensors")
    assert folder_bytes(tmp_path / "out") == {"model.safetensors": b"abc"}


def test_an_empty_zip_has_no_files(tmp_path: Path) -> None:
    assert read_all(make_zip(tmp_path / "empty.zip", {})) == {}


def test_a_lone_split_is_not_taken_for_a_wrapper(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = make_zip(tmp_path / f"{split}.zip", {f"{split}/cat/1.png": b"1", f"{split}/dog/1.png": b"2"})
        assert open_source(path, single_file_name="x").names() == [f"{split}/cat/1.png", f"{split}/dog/1.png"]


def test_several_tops_are_not_a_wrapper(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.png"]
    assert open_source(make_zip(tmp_path / "z.zip", dict.fromkeys(names, b"")), single_file_name="x").names() == names


def test_what_systems_leave_in_zips_is_ignored(tmp_path: Path) -> None:
    junk = {"__MACOSX/m/._config.json": b"x", "m/.DS_Store": b"x", ".git/HEAD": b"x", "m/.git/config": b"x"}
    assert read_all(make_zip(tmp_path / "z.zip", {**junk, "m/config.json": b"{}"})) == {"config.json": b"{}"}


def test_names_that_only_look_like_junk_are_kept(tmp_path: Path) -> None:
    files = {"digits.git/a.png": b"1", "other/b.png": b"2"}
    assert read_all(make_zip(tmp_path / "z.zip", files)) == files


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..", "a\\..\\evil", "C:\\evil", "a/.."], ids=repr
)
def test_zip_slip(tmp_path: Path, name: str) -> None:
    error = refused(make_zip(tmp_path / "z.zip", {"ok": b"", name: b"x"}), "archive_path_invalid")
    assert repr(name) in error.message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("model.safetensors")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path / "z.zip", "not_regular_file")


def test_links_and_pipes_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    makers: dict[str, Callable[[Path], None]] = {
        "file-link": lambda path: path.symlink_to(tmp_path / "outside"),
        "folder-link": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "loop": lambda path: path.symlink_to(path),
        "pipe": os.mkfifo,
    }
    for name, make in makers.items():
        folder = write_folder(tmp_path / f"folder-{name}", {"config.json": b"{}"})
        make(folder / "model.safetensors")
        refused(folder, "not_regular_file")


def test_tar_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a", "a")
    (tmp_path / "g.gz").write_bytes(gzip.compress(b"x"))
    for name in ("t.tar", "g.gz"):
        refused(tmp_path / name, "archive_format_refused")


def test_an_encrypted_entry(tmp_path: Path) -> None:
    blob = bytearray(make_zip(tmp_path / "z.zip", {"a": b"x"}).read_bytes())
    blob[blob.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z.zip").write_bytes(blob)
    assert "encrypted" in refused(tmp_path / "z.zip", "archive_invalid").message


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "z.zip", {"zeros": bytes(101_000_000)}), "archive_limit")


def test_small_repetitive_files_are_no_bomb(tmp_path: Path) -> None:
    assert read_all(make_zip(tmp_path / "z.zip", {"zeros": bytes(10_000_000)}))["zeros"] == bytes(10_000_000)


def test_limits_of_files_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "z.zip", {"a": b"123", "b": b"456"})
    monkeypatch.setattr(source, "MAX_FILES", 1)
    assert "2 files; the limit is 1" in refused(path, "archive_limit").message
    monkeypatch.setattr(source, "MAX_FILES", 2)
    monkeypatch.setattr(source, "MAX_UNPACKED_BYTES", 5)
    refused(path, "archive_limit")
    monkeypatch.setattr(source, "MAX_UNPACKED_BYTES", 6)
    assert len(read_all(path)) == 2


def test_a_directory_that_claims_another_size(tmp_path: Path) -> None:
    for claimed in (10, 1_000_000):
        blob = bytearray(make_zip(tmp_path / "z.zip", {"a": b"x" * 500}).read_bytes())
        struct.pack_into("<I", blob, blob.index(b"PK\x01\x02") + 24, claimed)
        (tmp_path / "z.zip").write_bytes(blob)
        with pytest.raises(KnownError, match=r"\(archive_(limit|invalid)\)"):
            unpack(tmp_path / "z.zip", tmp_path / "out", single_file_name="x")


def test_damage_is_found_on_unpacking(tmp_path: Path) -> None:
    blob = bytearray(make_zip(tmp_path / "z.zip", {"a": b"0123456789" * 50}, zipfile.ZIP_STORED).read_bytes())
    blob[blob.index(b"0123456789") + 5] ^= 1
    (tmp_path / "z.zip").write_bytes(blob)
    with pytest.raises(KnownError, match=r"\(archive_invalid\)"):
        unpack(tmp_path / "z.zip", tmp_path / "out", single_file_name="x")


def test_damaged_compression_is_found_on_unpacking(tmp_path: Path) -> None:
    blob = bytearray(make_zip(tmp_path / "z.zip", {"a": os.urandom(300)}).read_bytes())
    begin = 30 + len("a")
    blob[begin : begin + 20] = b"\xff" * 20
    (tmp_path / "z.zip").write_bytes(blob)
    with pytest.raises(KnownError, match=r"\(archive_invalid\)"):
        unpack(tmp_path / "z.zip", tmp_path / "out", single_file_name="x")


@pytest.mark.parametrize("field", ["local header", "method", "version"])
def test_entries_the_library_cannot_open(tmp_path: Path, field: str) -> None:
    blob = bytearray(make_zip(tmp_path / "z.zip", {"a": b"x" * 50}).read_bytes())
    directory = blob.index(b"PK\x01\x02")
    if field == "local header":
        blob[0:4] = b"PK\x05\x06"
    elif field == "method":
        struct.pack_into("<H", blob, directory + 10, 99)
    else:
        struct.pack_into("<H", blob, directory + 6, 99)
    (tmp_path / "z.zip").write_bytes(blob)
    with pytest.raises(KnownError, match=r"\(archive_invalid\)"):
        unpack(tmp_path / "z.zip", tmp_path / "out", single_file_name="x")


@pytest.mark.parametrize("names", [["a", "a/b"], ["x" * 300], ["a/.", "b"]], ids=["file and folder", "long", "dot"])
def test_names_that_cannot_be_laid_out_as_files(tmp_path: Path, names: list[str]) -> None:
    path = make_zip(tmp_path / "z.zip", {"top": b"", **dict.fromkeys(names, b"x")})
    with pytest.raises(KnownError, match=r"\(archive_path_invalid\)"):
        unpack(path, tmp_path / "out", single_file_name="x")


def test_a_name_given_twice_is_refused_or_unpacked_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"second")
    assert read_all(tmp_path / "z.zip") == {"a": b"second"}


def _sample() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("a.txt", "folder/b.txt"):
            archive.writestr(zipfile.ZipInfo(name), b"text " * 10, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


SAMPLE = _sample()


@hypothesis_settings(max_examples=200)
@given(strategies.lists(strategies.tuples(strategies.integers(4, len(SAMPLE) - 1), strategies.integers(0, 255)),
                        min_size=1, max_size=3))  # fmt: skip
def test_a_mutated_zip_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int]]
) -> None:
    blob = bytearray(SAMPLE)
    for position, value in mutations:
        blob[position] = value
    folder = tmp_path_factory.mktemp("zip")
    (folder / "z.zip").write_bytes(blob)
    try:
        unpack(folder / "z.zip", folder / "out", single_file_name="x")
    except KnownError as error:
        assert error.code.startswith("archive_") or error.code == "not_regular_file"  # noqa: PT017
