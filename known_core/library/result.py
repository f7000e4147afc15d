"""What :func:`known_core.enhance` returns."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.modules import load_state, read_state
from known_core.errors import KnownError
from known_core.files import atomic_folder, link_or_copy

if TYPE_CHECKING:
    from known_core.client.report import Report


class Scratch:
    """A temporary folder that lives as long as this object does."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="known-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class Candidates(Mapping[str, dict[str, Tensor]]):
    """State dicts by name, each read from its file when it is asked for.

    Args:
        folder: holds a folder for each, report.json and manifest.json.
        scratch: where the folder is temporary.
    """

    def __init__(self, folder: Path, names: list[str], scratch: Scratch | None) -> None:
        self.folder, self._names, self._scratch = folder, names, scratch

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        return read_state(Checkpoint(self.folder / name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Enhanced:
    """Candidates to fine-tune from, and what was measured of them.

    Attributes:
        candidates: state dicts: ``unchanged``, ``x2``, ``x4``, …, and the controls.
        report: the figures and the conclusion; shows itself in a notebook.
    """

    candidates: Candidates
    report: "Report"

    @property
    def selected(self) -> str:
        """The candidate to use; "unchanged" where nothing was gained."""
        return self.report.selected

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict of the selected candidate."""
        return self.candidates[self.selected]

    def load(self, model: nn.Module, name: str | None = None) -> None:
        """Put a candidate, by default the selected one, into a model of the same architecture, in place."""
        load_state(model, self.candidates[name or self.selected])

    def save(self, folder: Path | str) -> Path:
        """Every candidate as safetensors, report.json and manifest.json with every sha256, in a new folder.

        Raises:
            KnownError: ``output_exists``.
        """
        target = Path(folder)
        if target.exists():
            raise KnownError("output_exists", f"{target} exists already", "Name another folder, or remove it.")
        with atomic_folder(target) as temporary:
            for file in sorted(self.candidates.folder.rglob("*")):
                if file.is_file() and file.name != "stage.json":
                    link_or_copy(file, temporary / file.relative_to(self.candidates.folder))
        return target

    def __repr__(self) -> str:
        return f"<Enhanced: {', '.join(self.candidates)}; {self.report.conclusion}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
