"""The header of a safetensors file, checked before the library opens it.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without gaps
(safetensors README, "Format"). safetensors 0.8 itself accepts duplicate keys, traversing names and huge counts.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

from known_core.errors import KnownError

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_TENSORS = 100_000
MAX_RANK = 16
MAX_DIMENSION = 1 << 38
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_NAME = re.compile(r"[^\x00-\x1f/\\\ud800-\udfff]{1,512}\Z")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a pair: JSON can escape it, UTF-8 cannot hold it
_OTHER_FORMATS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, and pickle's protocols
_REMEDY = "Save the checkpoint again with safetensors and compare the sha256 before and after the transfer."


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return _DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class Header:
    """A checked header. ``raw`` is the header as it stands in the file, length prefix included."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    raw: bytes


def read_header(stream: BinaryIO, size: int, label: str) -> Header:
    """Read and check the header at the start of ``stream``.

    Args:
        stream: a binary stream positioned at the start of the file.
        size: the file's size in bytes.
        label: the file's name, for messages.

    Raises:
        KnownError: one code for each way a file can lie; see docs/errors.md.
    """
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if prefix[:2] in _OTHER_FORMATS and length > size - 8:  # a header of 640 bytes begins with 80 02 too
        raise KnownError(
            "unsafe_format",
            f"{label} is a pickle or an archive, not safetensors",
            "Pickles can run code. Convert: safetensors.torch.save_file(torch.load(p, weights_only=True), out).",
        )
    if len(prefix) < 8:
        raise _bad("header_too_small", f"{label} has {size} bytes; a safetensors file starts with 8 bytes of length")
    if length > MAX_HEADER_BYTES:
        raise _bad("header_too_large", f"{label} claims a header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
    body = stream.read(length)
    if len(body) < length or size < 8 + length:
        raise _bad("header_truncated", f"{label} claims a header of {length} bytes but has {size - 8} after the length")
    if body.count(b"{") > 2 * MAX_TENSORS:  # before a hundred megabytes of them become objects
        raise _bad("too_many_tensors", f"{label} holds {body.count(b'{')} objects; the limit is {MAX_TENSORS} tensors")
    entries = _parse(body, label)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and is_utf8(key + value) for key, value in metadata.items()
    ):
        raise _bad("header_invalid", f"{label}: __metadata__ must map UTF-8 strings to UTF-8 strings")
    if len(entries) > MAX_TENSORS:
        raise _bad("too_many_tensors", f"{label} names {len(entries)} tensors; the limit is {MAX_TENSORS}")
    tensors = {name: _tensor(name, entry, 8 + length, label) for name, entry in entries.items()}
    _check_layout(tensors, 8 + length, size, label)
    return Header(tensors, metadata, prefix + body)


def is_utf8(text: str) -> bool:
    return not _SURROGATE.search(text)


def _bad(code: str, message: str) -> KnownError:
    return KnownError(code, message, _REMEDY)


def _parse(body: bytes, label: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, value in pairs:
            if name in entries:
                raise _bad("duplicate_tensor", f"{label} names {name[:80]!r} twice")
            entries[name] = value
        return entries

    def integer(text: str) -> int:
        if text.startswith("-0"):
            raise ValueError(text)  # Python reads -0 as 0; the library refuses it
        return int(text)

    try:
        entries = json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_int=integer)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _bad("header_invalid", f"{label}: the header is not JSON: {type(error).__name__}") from error
    if not isinstance(entries, dict):
        raise _bad("header_invalid", f"{label}: the header is a JSON {type(entries).__name__}, not an object")
    return entries


def _tensor(name: str, entry: Any, data_begin: int, label: str) -> TensorInfo:
    if not _NAME.match(name) or ".." in name:
        raise _bad(
            "tensor_name_invalid",
            f"{label}: tensor name {name[:80]!r} is empty, too long, looks like a path or is not UTF-8",
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad("header_invalid", f"{label}: the entry of {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise _bad("tensor_invalid", f"{label}: {name!r} has dtype {str(dtype)[:40]!r}; not one of the format's")
    if not _integers(shape) or not _integers(offsets) or len(offsets) != 2:
        raise _bad("header_invalid", f"{label}: shape and data_offsets of {name!r} must be lists of integers")
    if len(shape) > MAX_RANK or any(dimension > MAX_DIMENSION for dimension in shape):
        raise _bad("shape_limit", f"{label}: {name!r} has rank {len(shape)}; limits: rank {MAX_RANK}, 2^38 a dimension")
    begin, end = offsets
    if begin < 0 or end < begin or any(dimension < 0 for dimension in shape):
        raise _bad("offset_invalid", f"{label}: {name!r} has offsets [{begin}, {end}]")
    if math.prod(shape) * _DTYPE_BITS[dtype] != (end - begin) * 8:
        raise _bad(
            "tensor_invalid", f"{label}: {name!r} of shape {shape} and dtype {dtype} does not fill {end - begin} bytes"
        )
    return TensorInfo(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_layout(tensors: dict[str, TensorInfo], data_begin: int, size: int, label: str) -> None:
    position = data_begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            what = "overlaps the tensor before it" if info.begin < position else "leaves a hole before it"
            raise _bad("offset_invalid", f"{label}: {name!r} {what}")
        position = info.end
    if position != size:
        what = f"{position - size} bytes are missing" if size < position else f"{size - position} bytes trail"
        raise _bad("size_mismatch", f"{label} has {size} bytes, its header describes {position}: {what}")
