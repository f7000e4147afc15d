"""How a checkpoint is laid out in files: as another one is, or in shards of a size of one's own."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from known_core.checkpoint.header import Header, TensorInfo
from known_core.checkpoint.reader import INDEX, Checkpoint
from known_core.errors import KnownError


@dataclass(frozen=True)
class Layout:
    """Files to write.

    Attributes:
        shards: the header of each file, by name; :class:`~known_core.checkpoint.writer.TensorWriter` takes it.
        index: what the index of the shards says; None where there is none, or where it stays as it is.
        replaced: files of the checkpoint that are not carried over, since this layout stands in for them.
    """

    shards: dict[str, Header]
    index: dict[str, Any] | None
    replaced: frozenset[str]


def same_layout(checkpoint: Checkpoint) -> Layout:
    """The checkpoint's own files, names and order."""
    return Layout(checkpoint.headers, None, frozenset(checkpoint.headers))


def sharded_layout(checkpoint: Checkpoint, max_shard_size: str) -> Layout:
    """Shards as ``save_pretrained`` cuts them: tensors in their order, a new file when the next one does not fit.

    Args:
        max_shard_size: such as "5GB"; a tensor that is larger is a shard of its own.

    Raises:
        KnownError: ``option_invalid``.
    """
    tensors = {name: info for header in checkpoint.headers.values() for name, info in header.tensors.items()}
    metadata = {key: value for header in checkpoint.headers.values() for key, value in header.metadata.items()}
    single = next(iter(checkpoint.headers)).removesuffix(".safetensors") if len(checkpoint.headers) == 1 else "model"
    try:
        if not re.fullmatch(r"[1-9][0-9.]*[KMGT]B", max_shard_size.strip().upper()):
            raise ValueError("not a size")
        split = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda info: info.end - info.begin,
            filename_pattern=f"{single}{{suffix}}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise KnownError(
            "option_invalid", f"max_shard_size is {max_shard_size!r}: {error}", "Give a number and a unit, such as 5GB."
        ) from error
    shards = {
        file: Header(_packed({name: tensors[name] for name in names}), metadata, b"")
        for file, names in split.filename_to_tensors.items()
    }
    index = None
    if split.is_sharded:
        index = {"metadata": _index_metadata(checkpoint) | split.metadata, "weight_map": split.tensor_to_filename}
    return Layout(shards, index, frozenset({*checkpoint.headers, INDEX}))


def packed_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Header:
    """The header of a file that is to be written. Args: tensors: dtype, such as "F32", and shape of each."""
    infos = {name: TensorInfo(dtype, shape, 0, 0) for name, (dtype, shape) in tensors.items()}
    return Header(
        _packed({name: replace(info, end=info.numel * info.itemsize) for name, info in infos.items()}), {}, b""
    )


def _packed(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors one after the other, from offset 0 on."""
    packed, begin = {}, 0
    for name, info in tensors.items():
        end = begin + info.end - info.begin
        packed[name] = replace(info, begin=begin, end=end)
        begin = end
    return packed


def _index_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    if INDEX not in checkpoint.source.names():
        return {}
    with checkpoint.source.open(INDEX) as stream:
        metadata = json.loads(stream.read()).get("metadata")
    return metadata if isinstance(metadata, dict) else {}
