"""What :func:`known_core.enhance` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import Tensor, nn

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.modules import load_state, read_state
from known_core.errors import KnownError
from known_core.files import atomic_folder, link_or_copy

if TYPE_CHECKING:
    from known_core.client.report import Report


class Candidates(Mapping[str, dict[str, Tensor]]):
    """State dicts by name, each read from its file when it is asked for. Args: folder: holds a folder for each."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self._names:
            raise KeyError(name)
        return read_state(Checkpoint(self._folder / name))

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
    _folder: Path
    _owner: "TemporaryDirectory[str] | None" = field(repr=False, default=None)  # alive as long as the files are needed

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
            for file in sorted(self._folder.rglob("*")):
                if file.is_file() and file.name != "stage.json":
                    link_or_copy(file, temporary / file.relative_to(self._folder))
        return target

    def __repr__(self) -> str:
        return f"<Enhanced: {', '.join(self.candidates)}; {self.report.conclusion}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()
