"""A checkpoint on disk: one safetensors file or sharded ones with an index, every header checked before use."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from known_core.checkpoint.dtypes import TORCH_DTYPES, all_finite
from known_core.checkpoint.header import Header, TensorInfo, read_header
from known_core.checkpoint.source import FileSource, FolderSource, RangeSource, RemoteSource, Source, is_local
from known_core.errors import KnownError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100 << 20
_MAX_SCANNED_BYTES = 1 << 30  # of weights that are read while a job is asked for
_PART = 1 << 24  # elements, or bytes of stored ones, looked at together


def weight_files(source: Source) -> list[str]:
    """The safetensors files that make up the model, checked against the index where there is one.

    Raises:
        KnownError: ``weights_missing``, ``unsafe_format``, ``index_invalid``, ``shard_path_invalid``.
    """
    names = source.names()
    if INDEX in names:
        return _indexed_files(source, names)
    files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if WEIGHTS in files:
        return [WEIGHTS]
    if len(files) == 1:
        return files
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5"))]
    if pickles and not files:
        raise KnownError(
            "unsafe_format",
            f"the weights are in {pickles[0]}, a format that can run code",
            "Convert to safetensors: model.save_pretrained(folder) writes it.",
        )
    raise KnownError(
        "weights_missing",
        f"found {len(files)} safetensors files and no {WEIGHTS} or {INDEX}",
        f"Name the weights {WEIGHTS}, or add the index of the shards.",
    )


def _indexed_files(source: Source, names: list[str]) -> list[str]:
    hint = "Write the checkpoint again with save_pretrained."
    try:
        with source.open(INDEX) as stream:
            index = json.loads(stream.read(_MAX_INDEX_BYTES + 1))
        files = sorted(set(index["weight_map"].values()))
        metadata = index.get("metadata")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KnownError("index_invalid", f"{INDEX} has no readable weight_map", hint) from error
    if not isinstance(metadata, dict):
        raise KnownError("index_invalid", f"{INDEX} has no metadata, which from_pretrained reads", hint)
    if not files:
        raise KnownError("index_invalid", f"{INDEX} names no shard", hint)
    for file in files:
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise KnownError("shard_path_invalid", f"{INDEX} names the shard {str(file)[:120]!r}", hint)
        if file not in names:
            raise KnownError("weights_missing", f"{INDEX} names {file[:120]!r}, which is not there", hint)
    return files


def read_headers(source: Source) -> dict[str, Header]:
    """The checked header of every weight file, by file name.

    Raises:
        KnownError: what :func:`weight_files` and :func:`~known_core.checkpoint.header.read_header` raise, and
            ``duplicate_tensor`` when two shards hold the same name.
    """
    headers: dict[str, Header] = {}
    owner: dict[str, str] = {}
    for file in weight_files(source):
        with source.open(file) as stream:
            headers[file] = read_header(stream, source.size(file), file)
        for name in headers[file].tensors:
            if name in owner:
                raise KnownError(
                    "duplicate_tensor", f"{name!r} is in {owner[name]} and in {file}", "Write the shards again."
                )
            owner[name] = file
    return headers


def wrapper_prefix(names: Iterable[str]) -> str:
    """What DistributedDataParallel and torch.compile put before every name: "", "module.", "_orig_mod.module.", …"""
    prefix = ""
    rest = list(names)
    while rest:
        for wrapper in ("module.", "_orig_mod."):
            if all(name.startswith(wrapper) for name in rest):
                prefix += wrapper
                rest = [name.removeprefix(wrapper) for name in rest]
                break
        else:
            break
    return prefix


def stored_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its logical name (see :class:`Checkpoint`).

    Raises:
        KnownError: what :func:`read_headers` raises.
    """
    stored = {name: info.shape for header in read_headers(source).values() for name, info in header.tensors.items()}
    prefix = wrapper_prefix(stored)
    return {name.removeprefix(prefix): shape for name, shape in stored.items()}


def check_stored_finite(source: Source) -> None:
    """Look for NaN and infinity while a job is asked for, where that takes seconds; the job looks at every model.

    Raises:
        KnownError: ``nonfinite_weights``, and what :func:`read_headers` raises.
    """
    headers = read_headers(source)
    if not is_local(source) or sum(map(source.size, headers)) > _MAX_SCANNED_BYTES:
        return
    for file, header in headers.items():
        with source.open(file) as stream:
            stream.read(len(header.raw))
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
                for begin in range(info.begin, info.end, _PART):
                    part = torch.frombuffer(
                        bytearray(stream.read(min(_PART, info.end - begin))), dtype=TORCH_DTYPES[info.dtype]
                    )
                    if not all_finite(part):
                        raise _not_finite(name, file)


def _not_finite(name: str, where: str) -> KnownError:
    return KnownError(
        "nonfinite_weights",
        f"{name!r} in {where} holds NaN or infinite values",
        "Start from a checkpoint whose training did not diverge.",
    )


@dataclass
class Checkpoint:
    """A safetensors checkpoint, read tensor by tensor or in parts of tensors; nothing of it stays in memory.

    Tensors go by their logical names: a ``module.`` or ``_orig_mod.`` that stands before every name (left there by
    DistributedDataParallel and torch.compile) is taken off. Headers keep the stored names.

    Args:
        location: a folder, or a single safetensors file; a string with ``://`` in it is an fsspec URL.
        links: whether files of a folder may be links that lead out of it.
    """

    location: Path | str
    links: bool = False
    source: RangeSource = field(init=False, repr=False)
    headers: dict[str, Header] = field(init=False, repr=False)
    tensors: dict[str, TensorInfo] = field(init=False, repr=False)
    prefix: str = field(init=False)
    _file_of: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if "://" in str(self.location):
            self.source = RemoteSource(str(self.location), single_file_name=WEIGHTS)
        else:
            self.location = Path(self.location)
            if not self.location.exists():
                raise KnownError("weights_missing", f"there is no checkpoint at {self.location}", "Check the path.")
            folder = self.location.is_dir()
            self.source = FolderSource(self.location, self.links) if folder else FileSource(self.location, WEIGHTS)
        self.headers = read_headers(self.source)
        stored = {name: file for file, header in self.headers.items() for name in header.tensors}
        self.prefix = wrapper_prefix(stored)
        self.tensors = {self.logical_name(name): self.headers[file].tensors[name] for name, file in stored.items()}
        self._file_of = {self.logical_name(name): file for name, file in stored.items()}

    @property
    def path(self) -> Path:
        """The folder or file of a local checkpoint."""
        assert isinstance(self.location, Path), f"{self.location} is not a local checkpoint"
        return self.location

    @property
    def name(self) -> str:
        """The last part of its path or address."""
        return str(self.location).rstrip("/").rpartition("/")[2]

    def logical_name(self, stored: str) -> str:
        return stored.removeprefix(self.prefix)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in its own dtype."""
        info = self.tensors[name]
        return self.read_part(name, 0, info.numel).reshape(info.shape)

    def read_part(self, name: str, begin: int, end: int) -> Tensor:
        """The elements from ``begin`` to ``end`` of a tensor in row-major order, (end - begin,)."""
        info = self.tensors[name]
        part = torch.empty(end - begin, dtype=TORCH_DTYPES[info.dtype])
        buffer = part.view(torch.uint8).numpy().data
        self.source.read_into(self._file_of[name], info.begin + begin * info.itemsize, buffer)
        return part

    def read_finite(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """:meth:`read_part`, or the whole tensor flat.

        Raises:
            KnownError: ``nonfinite_weights`` when what is read holds a NaN or an infinity.
        """
        part = self.read_part(name, begin, self.tensors[name].numel if end is None else end)
        if not all_finite(part):
            raise _not_finite(name, self.name)
        return part

    def sha256(self, file: str) -> str:
        """Hex sha256 of one of its files."""
        with self.source.open(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]

    def check_finite(self) -> None:
        """Raises: KnownError ``nonfinite_weights`` naming the first tensor with a NaN or an infinity."""
        for name, info in self.tensors.items():
            for begin in range(0, info.numel, _PART):
                self.read_finite(name, begin, min(begin + _PART, info.numel))


def check_same_tensors(states: Sequence[Checkpoint], labels: Sequence[str]) -> None:
    """Check that every state has the first one's names and shapes; all differences in one error.

    Raises:
        KnownError: ``states_mismatch``.
    """
    first = states[0].shapes
    problems: list[str] = []
    for state, label in zip(states[1:], labels[1:], strict=True):
        shapes = state.shapes
        problems += [f"{label} lacks {name}" for name in first.keys() - shapes.keys()]
        problems += [f"{label} adds {name}" for name in shapes.keys() - first.keys()]
        problems += [
            f"{name} is {list(shapes[name])} in {label}, {list(shape)} in {labels[0]}"
            for name, shape in first.items()
            if name in shapes and shapes[name] != shape
        ]
    if problems:
        listed = "; ".join(sorted(problems)[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise KnownError(
            "states_mismatch", f"the states are not of one model: {listed}", "Give states of one training run."
        )
