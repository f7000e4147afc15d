"""The manifest: sha256 of every file, and enough to run the job again."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from known_core.errors import KnownError
from known_core.files import canonical_json, read_json, sha256_bytes, sha256_file, write_json
from known_core.schema import SCHEMA, Step, forward, newest

if TYPE_CHECKING:
    import torch

NAME = "manifest.json"
_STEPS: tuple[Step, ...] = ()  # of a manifest since its first version; see known_core.schema
_PACKAGES = ("known", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy", "matplotlib")


def versions() -> dict[str, str | None]:
    """The stack a result depends on."""
    import torch  # here, so that a client that verifies a download does not load it

    packages = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **packages}


def processor(device: "torch.device") -> str:
    """What computes: a GPU's name, or the CPU's instructions and threads. Another one adds in another order."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write manifest.json over every file below ``folder``, last of all.

    ``content_sha256`` is the hash of the list of files: two runs gave the same result if it is the same.
    """
    files = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    ]
    content = sha256_bytes(canonical_json(files))
    said = {"content_sha256": content, "files": files, "versions": versions(), **facts}
    write_json(folder / NAME, {SCHEMA: newest(_STEPS), **said})


def verify_manifest(folder: Path, *, partial: bool = False) -> int:
    """Check every file below ``folder`` against its manifest.

    Args:
        partial: whether files may be missing (a download of some of them).

    Returns:
        The number of files checked.

    Raises:
        KnownError: ``manifest_missing``, ``record_too_new``, or ``checksum_mismatch`` naming every file that differs.
    """
    if not (folder / NAME).is_file():
        raise KnownError("manifest_missing", f"there is no {NAME} in {folder}", "Download it with the other files.")
    wrong, checked = [], 0
    for entry in forward(read_json(folder / NAME), _STEPS, NAME)["files"]:
        path = folder / entry["path"]
        if not path.is_file():
            if not partial:
                wrong.append(f"{entry['path']} is missing")
        elif sha256_file(path) != entry["sha256"]:
            wrong.append(f"{entry['path']} has another sha256")
        else:
            checked += 1
    if wrong:
        raise KnownError("checksum_mismatch", "; ".join(wrong), "Download these files again.", retryable=True)
    return checked
