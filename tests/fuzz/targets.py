"""What strangers' bytes are read by, as targets of a fuzzer: each takes bytes, and may raise KnownError alone."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from safetensors import SafetensorError, deserialize

from known_core.checkpoint.header import read_header
from known_core.checkpoint.reader import INDEX, weight_files
from known_core.checkpoint.source import FolderSource, unpack
from known_core.data import inspect_data, read_data
from known_core.data.images import read_image
from known_core.errors import KnownError
from known_core.models.config import read_config
from known_core.models.templates import check_templates
from known_core.spec import DataSettings
from tests.known_core.data import made as tables
from tests.known_core.test_header import HOSTILE, VALID
from tests.untrusted import made

Target = Callable[[bytes], None]
MAX_UNPACKED_BYTES = 64 << 20  # what a fuzzer's few kilobytes may become; deflate makes 1,032 of one


def header(data: bytes) -> None:
    """What we accept, the library opens with the same tensors."""
    found = read_header(io.BytesIO(data), len(data), "fuzzed")
    try:
        opened = {name: list(entry["shape"]) for name, entry in deserialize(data)}  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise AssertionError(f"passed the check, but safetensors refuses it: {error}") from error
    assert opened == {name: list(info.shape) for name, info in found.tensors.items()}


def _beside(name: str, data: bytes, use: Callable[[FolderSource], object]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / name).write_bytes(data)
        use(FolderSource(Path(folder)))


def index(data: bytes) -> None:
    def read(source: FolderSource) -> None:
        (source.root / "a.safetensors").touch()
        weight_files(source)

    _beside(INDEX, data, read)


def config(data: bytes) -> None:
    _beside("config.json", data, lambda source: json.dumps(read_config(source, None)).encode())


def template(data: bytes) -> None:
    _beside("chat_template.jinja", data, check_templates)


def archive(data: bytes) -> None:
    """Nothing lands outside of the folder, and what lands is bounded."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = Path(folder)
        (root / "z").write_bytes(data)
        try:
            unpack(root / "z", root / "out" / "in", single_file_name="x")
        finally:
            inside = [path for path in (root / "out").rglob("*") if path.is_file()]
            assert {path.name for path in root.iterdir()} <= {"z", "out"}
            assert {path.name for path in (root / "out").glob("*")} <= {"in"}
            assert not any(path.is_symlink() for path in inside)
            assert sum(path.stat().st_size for path in inside) <= MAX_UNPACKED_BYTES


def _table(suffix: str) -> Target:
    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            root = tables.write(Path(folder) / "d", {f"d{suffix}": data})
            files = inspect_data(tables.source_of(root), tables.CLASSIFIED, DataSettings())
            read_data(root, files, tables.CLASSIFIED, Path(folder) / "cache")

    return read


def image(data: bytes) -> None:
    assert isinstance(read_image(data, 0), Image.Image)


TARGETS: dict[str, Target] = {
    "header": header, "index": index, "config": config, "template": template, "archive": archive, "image": image,
    "parquet": _table(".parquet"), "csv": _table(".csv"), "jsonl": _table(".jsonl"), "arrow": _table(".arrow"),
}  # fmt: skip


def run(name: str, data: bytes) -> str:
    """The code of the error, or "" where there is none.

    Raises:
        Exception: whatever is no KnownError: a finding.
    """
    caught: KnownError | None = None
    try:
        TARGETS[name](data)
    except KnownError as error:
        caught = error
    if caught is None:
        return ""
    assert caught.hint
    str(caught).encode()
    return caught.code


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: what is fine, and what is refused for each reason there is a case of."""
    if name == "header":
        return [VALID, *(blob for _, blob in HOSTILE.values() if len(blob) < 10_000)]
    if name == "index":
        return [json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": shard}}).encode()
                for shard in ("a.safetensors", "../a", 3)]  # fmt: skip
    if name == "config":
        configs: list[dict[str, Any]] = [made.VIT, {"auto_map": {}}, {"a": [{"b": "\ud800"}]}]
        return [json.dumps(config).encode() for config in configs]
    if name == "template":
        return [b"{% for m in messages %}{{ m['role'] + ': ' + m.content | trim }}{% endfor %}",
                made.template(Path("/dev/null")).encode(), b"{% generation %}x{% endgeneration %}"]  # fmt: skip
    if name == "archive":
        return [made.zipped({"a/b.txt": b"text " * 20, "a/c": b"x"}), made.zipped({"../x": b""}), made.entries(3),
                made.zipped({"a": b"/etc/passwd"}, made.LINKS["link"]), made.claims_entries(3)]  # fmt: skip
    if name == "image":
        return [_image(form) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")] + [made.png_that_says(9, 9)]
    with tempfile.TemporaryDirectory() as folder:
        names = [file for file in tables.WRITERS if file.endswith(f".{name}")]
        return [tables.write_as(file, tables.texts(), Path(folder)).read_bytes() for file in names]


def _image(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(stream, form)
    return stream.getvalue()


pa.set_cpu_count(1)
