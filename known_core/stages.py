"""Resumable stages: each one's output is a folder keyed by the hash of its inputs."""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from known_core.files import atomic_folder, canonical_json, read_json, resumable_folder, sha256_bytes, write_json
from known_core.schema import SCHEMA

_RECORD = "stage.json"
_SCHEMA = 1  # of what stages leave behind; one of another version is made again


class Stages:
    """Runs stages once. A stage whose output is there is not run again, whoever ran it.

    Args:
        root: the folder that holds the outputs.
        shared: processes work in the folder side by side: of those that want the same stage at the same time the first
            runs it and the others wait, for as long as it lives. A job's folder is not shared: its owner holds a lease
            that can be taken from it, and the next owner must not wait for a frozen one. That one finds its temporary
            files gone when it goes on, and fails.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self._root = root
        self._shared = shared
        self.seconds: dict[str, float] = {}  # wall time of each stage, from the run that finished it

    def run(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], None], *, resumes: bool = False) -> Path:
        """The folder with the stage's output, made by ``work`` where it is not there yet.

        Args:
            name: of the stage; unique in the job.
            inputs: everything the output depends on, as JSON values; paths of earlier stages by their folder name.
            work: fills an empty folder, which then takes its name in one step.
            resumes: whether ``work`` may be given the folder as a run that was killed left it.
        """
        folder = self._folder(name, inputs)
        if not _is_current(folder):
            self._root.mkdir(parents=True, exist_ok=True)
            with FileLock(self._root / f".{folder.name}.lock") if self._shared else nullcontext():
                if not _is_current(folder):  # another process may have made it meanwhile
                    shutil.rmtree(folder, ignore_errors=True)
                    self._make(folder, inputs, work, resumes)
        self.seconds[name] = read_json(folder / _RECORD)["seconds"]
        return folder

    def find(self, name: str, inputs: Mapping[str, Any]) -> Path | None:
        """The folder of a stage that was run, or None."""
        folder = self._folder(name, inputs)
        return folder if _is_current(folder) else None

    def _folder(self, name: str, inputs: Mapping[str, Any]) -> Path:
        key = sha256_bytes(canonical_json({"stage": name, **inputs}))[:16]
        return self._root / f"{name}-{key}"

    @staticmethod
    def _make(folder: Path, inputs: Mapping[str, Any], work: Callable[[Path], None], resumes: bool) -> None:
        begun = time.monotonic()
        try:
            with resumable_folder(folder, "stage") if resumes else atomic_folder(folder) as temporary:
                work(temporary)
                said = {SCHEMA: _SCHEMA, "seconds": time.monotonic() - begun, "inputs": inputs}
                write_json(temporary / _RECORD, said)
        except Exception:
            if not folder.is_dir():  # else who had the job before, and does not know yet that it is lost, was faster
                raise


def _is_current(folder: Path) -> bool:
    """Whether the output of a stage is there, as this release makes it."""
    return folder.is_dir() and read_json(folder / _RECORD).get(SCHEMA, 1) == _SCHEMA
