"""Write one safetensors file in place, tensor by tensor or in parts of tensors, into space that is reserved first."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from known_core.checkpoint.dtypes import TORCH_DTYPES
from known_core.checkpoint.header import Header, read_header
from known_core.files import atomic_path


class _Placement:
    """Where each tensor lies in a file that is to have another file's names, dtypes, shapes and metadata.

    ``{"format": "pt"}`` is added to its metadata where it is missing.
    """

    def __init__(self, like: Header) -> None:
        self.tensors = like.tensors
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
        self._size = len(self._header) + sum(info.end - info.begin for info in like.tensors.values())

    def reserve(self, file: BinaryIO) -> None:
        """Take all of the file's space, and write the header."""
        os.posix_fallocate(file.fileno(), 0, self._size)
        file.write(self._header)

    def put(self, file: BinaryIO, name: str, begin: int, part: Tensor) -> None:
        """Write (n,) elements of a tensor from ``begin`` on, in the mirrored dtype."""
        info = self.tensors[name]
        if part.ndim != 1 or begin < 0 or begin + len(part) > info.numel:
            raise ValueError(f"{tuple(part.shape)} from {begin} on does not fit into {name}, {info.shape}")
        data = part.to("cpu", TORCH_DTYPES[info.dtype]).contiguous()
        file.seek(info.begin + self._shift + begin * info.itemsize)
        file.write(data.view(torch.uint8).numpy().data)


class TensorWriter:
    """Writes a file with another file's tensor names, dtypes, shapes and metadata; new values.

    The file appears under its name only when every element was written and the block ended well. All its space is
    reserved when the block begins, so a disk that is too full says so at once (OSError, ENOSPC).

    Args:
        path: where the file goes.
        like: the header to mirror. ``{"format": "pt"}`` is added to its metadata where it is missing.
    """

    def __init__(self, path: Path, like: Header) -> None:
        self._placement = _Placement(like)
        self._left = {name: info.numel for name, info in like.tensors.items()}  # elements to be written
        self._begun: set[str] = set()
        self._atomic = atomic_path(path)

    def __enter__(self) -> "TensorWriter":
        self._file = self._atomic.__enter__().open("wb")
        try:
            self._placement.reserve(self._file)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Args: tensor: any device and layout; its shape must be the mirrored one, its dtype is converted to it."""
        info = self._placement.tensors[name]
        if tuple(tensor.shape) != info.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the file wants {info.shape}")
        self.write_part(name, 0, tensor.detach().reshape(-1))

    def write_part(self, name: str, begin: int, part: Tensor) -> None:
        """Write the elements of a tensor from ``begin`` on, in row-major order; each element once.

        Args:
            part: (n,) on any device; its dtype is converted to the mirrored one.
        """
        if part.numel() > self._left[name]:
            raise ValueError(f"{tuple(part.shape)} from {begin} on does not fit what is left of {name}")
        self._placement.put(self._file, name, begin, part)
        self._left[name] -= len(part)
        self._begun.add(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        missing = [name for name, left in self._left.items() if left or name not in self._begun]
        if kind is None and missing:
            error = ValueError(f"{len(missing)} tensors were never written: {sorted(missing)[:5]}")
            kind, trace = ValueError, None
            self._atomic.__exit__(kind, error, trace)
            raise error
        self._atomic.__exit__(kind, error, trace)


def reserve(path: Path, like: Header) -> None:
    """Make a file that several :class:`SharedWriter` fill; its space is taken at once."""
    with path.open("wb") as file:
        _Placement(like).reserve(file)


class SharedWriter:
    """Writes parts of a file that :func:`reserve` has made, beside other processes that write theirs.

    Nobody looks whether all is written: for a file in a folder that takes its name once all are done.

    Args:
        like: the header that the file was made with.
    """

    def __init__(self, path: Path, like: Header) -> None:
        self._path, self._placement = path, _Placement(like)

    def __enter__(self) -> "SharedWriter":
        self._file = self._path.open("r+b")
        return self

    def write_part(self, name: str, begin: int, part: Tensor) -> None:
        """As :meth:`TensorWriter.write_part`."""
        self._placement.put(self._file, name, begin, part)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file, atomically, with the same bytes each time: the library writes metadata in random order."""
    blob = save(dict(tensors))
    layout = read_header(io.BytesIO(blob), len(blob), path.name)
    with TensorWriter(path, replace(layout, metadata=dict(sorted(metadata.items())))) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
