"""Write one safetensors file tensor by tensor, in place, with the header of the file it mirrors."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save
from torch import Tensor

from known_core.checkpoint.header import Header, read_header
from known_core.files import atomic_path

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


class TensorWriter:
    """Writes a file with another file's tensor names, dtypes, shapes and metadata; new values.

    The file appears under its name only when every tensor was written and the block ended well.

    Args:
        path: where the file goes.
        like: the header to mirror. ``{"format": "pt"}`` is added to its metadata where it is missing.
    """

    def __init__(self, path: Path, like: Header) -> None:
        self._tensors = like.tensors
        entries: dict[str, object] = {"__metadata__": {"format": "pt", **like.metadata}}
        old_begin = len(like.raw)
        for name, info in like.tensors.items():
            entries[name] = {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": [info.begin - old_begin, info.end - old_begin],
            }
        body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        body += b" " * (-len(body) % 8)  # the format asks for 8-byte alignment of the data
        self._header = len(body).to_bytes(8, "little") + body
        self._shift = len(self._header) - old_begin
        self._missing = set(like.tensors)
        self._atomic = atomic_path(path)

    def __enter__(self) -> "TensorWriter":
        self._file = self._atomic.__enter__().open("wb")
        self._file.write(self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Args: tensor: any device and layout; its shape must be the mirrored one, its dtype is converted to it."""
        info = self._tensors[name]
        if tuple(tensor.shape) != info.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the file wants {info.shape}")
        data = tensor.detach().to("cpu", _DTYPES[info.dtype]).contiguous()
        self._file.seek(info.begin + self._shift)
        self._file.write(data.reshape(-1).view(torch.uint8).numpy().data)
        self._missing.remove(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            error = ValueError(f"{len(self._missing)} tensors were never written: {sorted(self._missing)[:5]}")
            kind, trace = ValueError, None
            self._atomic.__exit__(kind, error, trace)
            raise error
        self._atomic.__exit__(kind, error, trace)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file, atomically, with the same bytes each time: the library writes metadata in random order."""
    blob = save(dict(tensors))
    layout = read_header(io.BytesIO(blob), len(blob), path.name)
    with TensorWriter(path, replace(layout, metadata=dict(sorted(metadata.items())))) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
