"""Hypothesis on what reads strangers' bytes: structured inputs that blind fuzzers seldom make; and the targets' seeds.

`make fuzz` runs the same targets under coverage guidance (tests/fuzz).
"""

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from known_core.checkpoint import source
from known_core.checkpoint.header import MAX_DIMENSION, MAX_RANK, read_header
from known_core.checkpoint.source import ZipSource, unpack
from known_core.errors import KnownError
from tests.fuzz import targets
from tests.untrusted import made

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5")) * 60
OURS = {  # what safetensors takes and we do not, by what the header does: the list's "+", and what torch cannot read
    "none": {"duplicate_tensor", "tensor_name_invalid", "too_many_tensors", "shape_limit"},
    "dtype": {"tensor_invalid"},
    "extra": {"header_invalid"},
}
BITS = {"BOOL": 8, "F16": 16, "BF16": 16, "F32": 32, "I64": 64, "F8_E4M3": 8, "C64": 64}


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds(name: str) -> None:
    """What the fuzzer begins with is no finding, and there is something fine among it."""
    assert "" in [targets.run(name, seed) for seed in targets.seeds(name)]


@st.composite
def _headers(draw: st.DrawFn) -> tuple[str, bytes]:
    """Files whose tensors fill their bytes exactly, in any order, with odd names, shapes and metadata, and one lie."""
    names = st.sampled_from(["", "a", "b.c", "../x", "a/b", "a\\b", "..", "ü", "\ud800", "x" * 513, "a\n"])
    shapes = st.lists(st.integers(0, 3), max_size=4) | st.just([0] * (MAX_RANK + 1)) | st.just([0, MAX_DIMENSION + 1])
    entries: list[tuple[str, Any]] = []
    position = 0
    for name in draw(st.lists(names, max_size=4)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(shapes)
        size = BITS[dtype] // 8
        for dimension in shape:
            size *= dimension
        entries.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}))
        position += size
    if draw(st.booleans()):
        entries.append(("__metadata__", draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))))
    lie = draw(st.sampled_from(["none", "offset", "dtype", "extra", "trailing"]))
    tensors = [entry for name, entry in entries if name != "__metadata__"]
    if tensors and lie == "offset":
        draw(st.sampled_from(tensors))["data_offsets"][draw(st.integers(0, 1))] += draw(
            st.sampled_from([-1, 1, 1 << 63])
        )
    if tensors and lie == "dtype":
        draw(st.sampled_from(tensors))["dtype"] = draw(st.sampled_from(["F4", "U64", "", None, "F8_E8M0"]))
    if tensors and lie == "extra":
        draw(st.sampled_from(tensors))["x"] = 1
    order = draw(st.permutations(entries))
    body = ("{" + ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in order) + "}").encode()
    body = body.ljust(len(body) + draw(st.integers(0, 8)))
    return lie, struct.pack("<Q", len(body)) + body + bytes(position + (lie == "trailing"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(_headers())
def test_we_and_the_library_differ_only_where_we_say(made_header: tuple[str, bytes]) -> None:
    """What we accept, it opens with the same tensors; what it accepts and we refuse has one of our own reasons."""
    lie, blob = made_header
    try:
        opened = {name: list(entry["shape"]) for name, entry in deserialize(blob)}  # type: ignore[no-untyped-call]
    except SafetensorError:
        opened = None
    try:
        tensors = read_header(io.BytesIO(blob), len(blob), "x").tensors
    except KnownError as error:
        assert opened is None or error.code in OURS["none"] | OURS.get(lie, set()), error  # noqa: PT017
        return
    assert {name: list(info.shape) for name, info in tensors.items()} == opened


_FIELDS = {"flags": (8, "H"), "method": (10, "H"), "packed": (20, "I"), "size": (24, "I"), "name": (28, "H"),
           "extra": (30, "H"), "mode": (38, "I"), "offset": (42, "I"), "version": (6, "H")}  # fmt: skip
_NAMES = ["a", "b/c", "b", "../x", "/x", "a\\b", "./a", "x" * 300, "d/" * 70 + "e", "a.zip", "", ".", "ü", "__MACOSX/a"]


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    """Zips with odd names, some fields of their directory changed, and entries that lie over each other."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=4)):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            archive.writestr(entry, draw(st.sampled_from([b"", b"x", b"text " * 50, bytes(10_000)])))
    blob = bytearray(buffer.getvalue())
    starts = [at for at in range(len(blob) - 46) if blob[at : at + 4] == b"PK\x01\x02"]
    for at in draw(st.lists(st.sampled_from(starts), max_size=3)) if starts else []:
        place, kind = _FIELDS[draw(st.sampled_from(sorted(_FIELDS)))]
        most = (1 << 8 * struct.calcsize(kind)) - 1
        value = draw(st.sampled_from([0, 1, 8, most]) | st.integers(0, most))
        struct.pack_into(f"<{kind}", blob, at + place, value)
    if draw(st.booleans()):
        end = blob.rindex(b"PK\x05\x06")
        struct.pack_into("<H", blob, end + draw(st.sampled_from([8, 10])), draw(st.integers(0, 65_535)))
    return bytes(blob)


@settings(max_examples=EXAMPLES, deadline=None)
@given(_archives() | st.binary(max_size=64).map(lambda tail: made.zipped({"a": b"x"}) + tail))
def test_any_archive_is_refused_or_unpacked_within_its_folder(blob: bytes) -> None:
    assert targets.run("archive", blob) in {
        "", "archive_invalid", "archive_limit", "archive_path_invalid", "archive_format_refused", "not_regular_file",
    }  # fmt: skip


def test_a_million_entries(tmp_path: Path) -> None:
    """Refused before zipfile makes an object of each: seconds and a gigabyte."""
    (tmp_path / "z.zip").write_bytes(made.entries(1_000_000))
    with pytest.raises(KnownError, match=r"1000000 files; the limit is 500000 .*|\(archive_limit\)"):
        ZipSource(tmp_path / "z.zip")


@pytest.mark.parametrize("comment", [b"", b"PK\x05\x06", b"x" * 65_535])
def test_a_directory_that_claims_few_entries_and_has_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comment: bytes
) -> None:
    blob = bytearray(made.entries(1000, claimed=1))
    struct.pack_into("<H", blob, len(blob) - 2, len(comment))
    (tmp_path / "z.zip").write_bytes(bytes(blob) + comment)
    monkeypatch.setattr(source, "MAX_DIRECTORY_BYTES", 46_000)
    with pytest.raises(KnownError, match=r"\(archive_(limit|invalid)\)"):
        ZipSource(tmp_path / "z.zip")
    monkeypatch.setattr(source, "MAX_DIRECTORY_BYTES", 1 << 20)
    monkeypatch.setattr(source, "MAX_FILES", 999)
    with pytest.raises(KnownError, match=r"\(archive_(limit|invalid)\)"):
        ZipSource(tmp_path / "z.zip")


def test_folders_count_as_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "z.zip").write_bytes(made.zipped({f"{index}/": b"" for index in range(5)} | {"a": b"x"}))
    unpack(tmp_path / "z.zip", tmp_path / "out", single_file_name="x")
    monkeypatch.setattr(source, "MAX_FILES", 5)
    with pytest.raises(KnownError, match=r"6 files.*\(archive_limit\)"):
        ZipSource(tmp_path / "z.zip")
