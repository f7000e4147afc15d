"""What a hostile user would send, built by code; payloads that could run would leave a canary file."""

import io
import json
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from known_core.models.registered import build_registered
from tests.conftest import CONFIG
from tests.known_core.data.made import png

STATE = build_registered(CONFIG).state_dict()
MODEL = save(STATE, metadata={"format": "pt"})
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 8, "patch_size": 4}


def zipped(files: Mapping[str, bytes | str], kind: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Args: kind: of the last entry, such as stat.S_IFLNK."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for index, (name, data) in enumerate(files.items(), start=1):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = compression
            if kind and index == len(files):
                entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def checkpoint(weights: bytes = MODEL, config: Mapping[str, Any] = CONFIG, **beside: bytes | str) -> bytes:
    """A zipped checkpoint; keywords name files, with ``__`` for the dot."""
    others = {name.replace("__", "."): data for name, data in beside.items()}
    return zipped({"config.json": json.dumps(config), "model.safetensors": weights, **others})


def indexed(index: Mapping[str, Any], kind: int = 0) -> bytes:
    """A checkpoint of one shard with this index."""
    return zipped({"config.json": json.dumps(CONFIG), INDEX: json.dumps(index), SHARD: MODEL}, kind)


def changed(name: str, value: float, dtype: torch.dtype = torch.float32) -> bytes:
    """The model with a number somewhere in the middle of one tensor."""
    tensors = {key: tensor.clone() for key, tensor in STATE.items()}
    tensors[name] = tensors[name].to(dtype)
    tensors[name].view(-1)[tensors[name].numel() // 2] = value
    return save(tensors, metadata={"format": "pt"})


def many_tensors(count: int) -> bytes:
    body = json.dumps({f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(count)})
    return struct.pack("<Q", len(body)) + body.encode()


def script(canary: Path) -> str:
    """Python that leaves the canary when it is imported."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"


class _Touches:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self._path,)


def pickled(canary: Path, protocol: int = 4) -> bytes:
    """A pickle that leaves the canary when it is loaded."""
    return pickle.dumps({"weight": _Touches(canary)}, protocol)


def torch_pickled(canary: Path) -> bytes:
    """The same as torch.save writes it: a zip."""
    buffer = io.BytesIO()
    torch.save({"weight": _Touches(canary)}, buffer)
    return buffer.getvalue()


def template(canary: Path) -> str:
    """Jinja that leaves the canary when it is rendered without a sandbox."""
    return "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"


def card(canary: Path) -> str:
    """A data set's card that leaves the canary when PyYAML's unsafe loader reads it."""
    return f"---\nconfigs: !!python/object/apply:os.system ['touch {canary}']\n---\n"


def images(files: Mapping[str, bytes] | None = None, classes: int = 5) -> dict[str, bytes | str]:
    """A small image folder of the model's classes, and whatever else."""
    each: dict[str, bytes | str] = {
        f"train/{label}/{index}.png": png(index) for label in range(classes) for index in range(20)
    }
    return {**each, **(files or {})}


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of 60 bytes with an honest checksum and a dishonest size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def parquet(labels: list[Any], count: int = 100) -> bytes:
    """Images with these labels over and over."""
    table = pa.table({"image": [png(index) for index in range(count)], "label": (labels * count)[:count]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def tarred(compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("../evil")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return buffer.getvalue()


def claims_entries(count: int) -> bytes:
    """A zip of 98 bytes whose zip64 record claims so many entries."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, min(46 * count, 1 << 60), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\x03\x04".ljust(30, b"\0") + record + locator + end


def entries(count: int, claimed: int | None = None) -> bytes:
    """A zip of ``count`` empty files, all of one name, with a directory of 47 bytes each; ``claimed`` lies about it."""
    one = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 7, 1, *[0] * 6) + b"a"
    size, said = len(one) * count, count if claimed is None else claimed
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, min(said, 0xFFFF), min(said, 0xFFFF), size, 31, 0)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *[0] * 7, 1, 0) + b"a"
    if said <= 0xFFFF:
        return local + one * count + end
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, said, said, size, len(local))
    return local + one * count + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + size, 1) + end


LINKS = {"link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "device": stat.S_IFCHR}
