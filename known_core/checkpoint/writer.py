"""Write one safetensors file tensor by tensor, in place, with the header of the file it mirrors."""

import json
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from known_core.checkpoint.header import Header
from known_core.files import atomic_path


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
        data = tensor.detach().cpu().contiguous()
        if data.numel() * data.element_size() != info.end - info.begin:
            raise ValueError(f"{name} has {data.dtype} {tuple(data.shape)}; the file wants {info.dtype} {info.shape}")
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
