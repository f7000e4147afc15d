"""Hostile safetensors headers, each with its own code; and that nothing else gets past the check."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors import deserialize as untyped_deserialize
from safetensors.torch import save, save_file

from known_core.checkpoint import Checkpoint, header
from known_core.checkpoint.header import Header, read_header
from known_core.errors import KnownError


def check(blob: bytes) -> Header:
    return read_header(io.BytesIO(blob), len(blob), "hostile.safetensors")


def framed(body: bytes | str | dict[str, Any], data: bytes = b"") -> bytes:
    """A file with this header, its length put before it."""
    text = json.dumps(body) if isinstance(body, dict) else body
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(
    shape: list[Any] | None = None, offsets: list[Any] | None = None, dtype: Any = "F32", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": offsets or [0, 4], **more}


ENTRY = json.dumps(tensor())
ONE = f'{{"a": {ENTRY}}}'
HOSTILE: dict[str, tuple[str, bytes]] = {
    "empty file": ("header_too_small", b""),
    "seven bytes": ("header_too_small", b"\0" * 7),
    "length 2^63": ("header_too_large", (1 << 63).to_bytes(8, "little") + b"{}"),
    "length just over the limit": ("header_too_large", (100_000_001).to_bytes(8, "little") + b"{}"),
    "header past the end": ("header_truncated", (1000).to_bytes(8, "little") + b"{}"),
    "bad UTF-8": ("header_invalid", framed(b'{"\xff": 1}')),
    "bad JSON": ("header_invalid", framed("{not json")),
    "no header at all": ("header_invalid", framed("")),
    "NUL padding": ("header_invalid", framed(ONE + "\0\0", b"0000")),
    "5,000 deep": ("header_invalid", framed("[" * 5000 + "]" * 5000)),
    "100,000 deep": ("header_invalid", framed('{"a":' * 100_000 + "1" + "}" * 100_000)),
    "a list": ("header_invalid", framed("[]")),
    "entry is a number": ("header_invalid", framed({"a": 3})),
    "entry lacks its offsets": ("header_invalid", framed({"a": {"dtype": "F32", "shape": [1]}})),
    "entry has a field more": ("header_invalid", framed({"a": tensor(x=1)}, b"0000")),
    "metadata is a list": ("header_invalid", framed({"__metadata__": []})),
    "metadata has a number": ("header_invalid", framed({"__metadata__": {"a": 1}})),
    "shape has a float": ("header_invalid", framed({"a": tensor([1.0])}, b"0000")),
    "shape has a boolean": ("header_invalid", framed({"a": tensor([True])}, b"0000")),
    "three offsets": ("header_invalid", framed({"a": tensor(offsets=[0, 4, 4])}, b"0000")),
    "integer of 5,000 digits": ("header_invalid", framed(ONE.replace("[1]", f"[{'9' * 5000}]"), b"0000")),
    "overlap": ("offset_invalid", framed({"a": tensor(), "b": tensor(offsets=[0, 4])}, b"0000")),
    "partial overlap": ("offset_invalid", framed({"a": tensor(), "b": tensor(offsets=[2, 6])}, b"000000")),
    "hole": ("offset_invalid", framed({"a": tensor(offsets=[4, 8])}, b"00000000")),
    "negative offset": ("offset_invalid", framed({"a": tensor(offsets=[-4, 0])}, b"")),
    "end before begin": ("offset_invalid", framed({"a": tensor(offsets=[4, 0])}, b"0000")),
    "negative dimension": ("offset_invalid", framed({"a": tensor([-1])}, b"0000")),
    "trailing bytes": ("size_mismatch", framed(ONE, b"00000")),
    "missing bytes": ("size_mismatch", framed(ONE, b"000")),
    "unknown dtype": ("tensor_invalid", framed({"a": tensor(dtype="F31")}, b"0000")),
    "dtype is a list": ("tensor_invalid", framed({"a": tensor(dtype=[])}, b"0000")),
    "shape does not fill the bytes": ("tensor_invalid", framed({"a": tensor([2])}, b"0000")),
    "shape overflows 64 bits": ("tensor_invalid", framed({"a": tensor([1 << 32, 1 << 32])}, b"0000")),
    "same name twice": ("duplicate_tensor", framed(f'{{"a": {ENTRY}, "a": {ENTRY}}}', b"0000")),
    "metadata twice": ("duplicate_tensor", framed('{"__metadata__": {}, "__metadata__": {}}')),
    "dtype twice in an entry": (
        "duplicate_tensor",
        framed(ONE.replace('{"dtype"', '{"dtype": "I32", "dtype"'), b"0000"),
    ),
    "traversing name": ("tensor_name_invalid", framed({"../../x": tensor()}, b"0000")),
    "dots without slashes": ("tensor_name_invalid", framed({"..": tensor()}, b"0000")),
    "backslash": ("tensor_name_invalid", framed({"..\\x": tensor()}, b"0000")),
    "absolute name": ("tensor_name_invalid", framed({"/etc/passwd": tensor()}, b"0000")),
    "empty name": ("tensor_name_invalid", framed({"": tensor()}, b"0000")),
    "name with a line break": ("tensor_name_invalid", framed({"a\nb": tensor()}, b"0000")),
    "name ends in a line break": ("tensor_name_invalid", framed({"a\n": tensor()}, b"0000")),
    "name of 513 characters": ("tensor_name_invalid", framed({"a" * 513: tensor()}, b"0000")),
    "name is half a surrogate pair": ("tensor_name_invalid", framed(ONE.replace('"a"', '"\\ud800"'), b"0000")),
    "dimension 2^40": ("shape_limit", framed({"a": tensor([0, 1 << 40], [0, 0])})),
    "rank 1,000": ("shape_limit", framed({"a": tensor([0] * 1000, [0, 0])})),
    "pickle": ("unsafe_format", pickle.dumps({"a": 1}, protocol=4)),
    "pickle of protocol 2": ("unsafe_format", pickle.dumps({"a": 1}, protocol=2)),
}


@pytest.mark.parametrize(("code", "blob"), HOSTILE.values(), ids=HOSTILE.keys())
def test_each_lie_has_its_code(code: str, blob: bytes) -> None:
    with pytest.raises(KnownError) as caught:
        check(blob)
    assert caught.value.code == code
    assert "hostile.safetensors" in caught.value.message
    assert caught.value.hint


def test_a_checkpoint_of_a_hostile_file_is_refused_before_the_library_sees_it(tmp_path: Path) -> None:
    for index, (code, blob) in enumerate(HOSTILE.values()):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(blob)
        with pytest.raises(KnownError, match=rf"\({code}\)"):
            Checkpoint(path)


@pytest.mark.parametrize("as_zip", [True, False])
def test_torch_save_is_refused(as_zip: bool) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(KnownError, match=r"\(unsafe_format\)"):
        check(stream.getvalue())


def test_a_zip_renamed_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(KnownError, match=r"\(unsafe_format\)"):
        check(stream.getvalue())


def test_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = framed({f"t{index}": tensor([0], [0, 0]) for index in range(11)})
    monkeypatch.setattr(header, "MAX_TENSORS", 11)
    assert len(check(blob).tensors) == 11
    monkeypatch.setattr(header, "MAX_TENSORS", 10)
    with pytest.raises(KnownError, match=r"11 tensors; the limit is 10 \(too_many_tensors\)"):
        check(blob)


def test_a_duplicate_among_many_names_is_found_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 100 MB holds millions of names; finding the repeated one must not compare them all pairwise."""
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    def loads(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any], **_: Any) -> Any:
        pairs = [(Name(index), 0) for index in range(1000)]
        return object_pairs_hook([*pairs, (Name(999), 0)])

    monkeypatch.setattr("known_core.checkpoint.header.json.loads", loads)
    with pytest.raises(KnownError, match=r"'999' twice \(duplicate_tensor\)"):
        check(framed("{}"))
    assert compared < 20_000


VALID = save(
    {
        "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 5),
        "näme": torch.zeros(2, dtype=torch.float16),
    },
    metadata={"format": "pt", "note": "ü"},
)


def deserialize(blob: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The library's own reading of a file."""
    return untyped_deserialize(blob)  # type: ignore[no-untyped-call, no-any-return]


def _table(found: Header) -> dict[str, tuple[str, list[int], int]]:
    return {name: (info.dtype, list(info.shape), info.end - info.begin) for name, info in found.tensors.items()}


def test_the_library_s_own_files_are_accepted_with_the_same_table() -> None:
    found = check(VALID)
    assert _table(found) == {
        name: (entry["dtype"], list(entry["shape"]), len(entry["data"])) for name, entry in deserialize(VALID)
    }
    assert found.metadata == {"format": "pt", "note": "ü"}
    assert VALID.startswith(found.raw)
    for name, entry in deserialize(VALID):
        info = found.tensors[name]
        assert VALID[info.begin : info.end] == bytes(entry["data"])


_mutation = st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=4), st.integers(0, 4))


@hypothesis_settings(max_examples=600)
@given(st.lists(_mutation, min_size=1, max_size=3))
def test_a_mutated_file_is_refused_by_us_or_opened_by_the_library(mutations: list[tuple[int, bytes, int]]) -> None:
    blob = VALID
    for position, inserted, removed in mutations:
        blob = blob[:position] + inserted + blob[position + removed :]
    _refused_or_opened(blob)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "a", "\ud800", "-0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_entry = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "I64", "BOOL"]) | _json,
    "shape": st.lists(st.integers(0, 2), max_size=3) | _json,
    "data_offsets": st.just([0, 4]) | _json,
})  # fmt: skip


@hypothesis_settings(max_examples=300)
@given(
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), _entry | _json, max_size=3), st.binary(max_size=8)
)
def test_any_json_header_is_refused_by_us_or_opened_by_the_library(entries: dict[str, Any], data: bytes) -> None:
    _refused_or_opened(framed(entries, data))


@pytest.mark.parametrize(
    "blob",
    [
        framed(ONE.replace("[0, 4]", "[-0, 4]"), b"0000"),
        framed('{"__metadata__": {"x": "\\udfff"}, ' + ONE[1:], b"0000"),
        framed(" " + ONE + "  ", b"0000"),
        framed('{"a": ' + ENTRY.replace("[1]", "[0, 1e999]") + "}", b"0000"),
    ],
    ids=["minus zero", "surrogate in metadata", "spaces", "infinity"],
)
def test_python_s_laxer_json_lets_nothing_past(blob: bytes) -> None:
    _refused_or_opened(blob)


def _refused_or_opened(blob: bytes) -> None:
    try:
        found = check(blob)
    except KnownError:
        return
    try:
        opened = deserialize(blob)
    except SafetensorError as error:
        pytest.fail(f"passed the check, but safetensors refuses it: {error}")
    assert {name: list(info.shape) for name, info in found.tensors.items()} == {
        name: list(entry["shape"]) for name, entry in opened
    }


def test_tensor_bytes_are_read_back_from_the_offsets(tmp_path: Path) -> None:
    values = torch.randn(7, 3)
    save_file({"a": torch.zeros(5), "b": values}, tmp_path / "m.safetensors")
    info = check((tmp_path / "m.safetensors").read_bytes()).tensors["b"]
    raw = (tmp_path / "m.safetensors").read_bytes()[info.begin : info.end]
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(7, 3), values)
    assert info.numel == 21


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19_280])  # little-endian: 80 02, 80 03, 80 04, 80 05, "PK"
def test_a_header_whose_length_looks_like_another_format_is_read(length: int) -> None:
    body = json.dumps({"a": tensor()}).ljust(length)
    assert check(framed(body, b"0000")).tensors["a"].shape == (1,)
