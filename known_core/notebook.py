"""rich's progress in a notebook's cell: as HTML that is replaced in place. rich itself needs ipywidgets for that."""

import io
import time
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import Progress

_EVERY_S = 0.25  # between two pictures
_PRE = "<pre style='white-space:pre;line-height:normal;font-family:monospace'>{code}</pre>"


def _display() -> Any:
    """IPython's, which is there wherever a notebook is."""
    return import_module("IPython.display")


class NotebookProgress(Progress):
    """A Progress that is drawn by IPython's display."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options, auto_refresh=False)
        self._handle: Any = None
        self._drawn_at = 0.0

    def start(self) -> None:
        display = _display()
        if self._handle is None:
            self._handle = display.display(display.HTML(self._picture()), display_id=True)

    def stop(self) -> None:
        self.refresh()

    def update(self, *arguments: Any, **changes: Any) -> None:
        super().update(*arguments, **changes)
        if time.monotonic() - self._drawn_at > _EVERY_S:
            self.refresh()

    def refresh(self) -> None:
        if self._handle is not None:
            self._drawn_at = time.monotonic()
            self._handle.update(_display().HTML(self._picture()))

    def _picture(self) -> str:
        paper = Console(file=io.StringIO(), record=True, force_jupyter=False, force_terminal=True, width=100)
        paper.print(self.get_renderable())
        return paper.export_html(inline_styles=True, code_format=_PRE)
