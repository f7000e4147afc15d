"""A job's before/after report, to be read, printed and drawn."""

import html
import io
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.table import Table

from known_core.terminal import before_and_after, show_report


class Report(dict[str, Any]):
    """The report of a job, or of :func:`known_core.enhance`: the JSON as it is (docs/guide.md), and ways to see it.

    In a notebook it shows itself.
    """

    @property
    def conclusion(self) -> str:
        """The result in words."""
        return str(self["conclusion"])

    @property
    def selected(self) -> str:
        """The candidate to use; "unchanged" where no gain was shown."""
        return str(self["selected"])

    @property
    def notes(self) -> list[str]:
        """How to read the figures, and how not."""
        return list(self["notes"])

    @property
    def gains(self) -> dict[str, dict[str, float]]:
        """The paired gain of each candidate over the weights given: mean, low, high (95%), as shares of one."""
        return {name: row["gain"] for name, row in self.get("transfer", {}).items() if row["gain"] is not None}

    def table(self) -> Table:
        """Before and after, as a table of rich: ``rich.print`` shows it in a terminal, a notebook shows it itself."""
        return before_and_after(self)

    def plot(self, names: Sequence[str] | None = None) -> Any:
        """Draw it: a matplotlib figure.

        Args:
            names: of the pictures; None: all that the report has figures for.
        """
        return import_module("known_core.figures").plot(self, names=names)

    def __str__(self) -> str:
        paper = io.StringIO()
        show_report(self, Console(file=paper, width=100, force_jupyter=False))
        return paper.getvalue()

    def __repr__(self) -> str:
        return f"<Report: {self.conclusion}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = _html_table(self) if "transfer" in self or self.get("own_task") else ""
        return f"<p><b>{html.escape(self.conclusion)}</b></p>{table}<ul>{notes}</ul>"


def _html_table(report: dict[str, Any]) -> str:
    """The same table as :func:`~known_core.terminal.before_and_after`."""
    table = before_and_after(report)
    head = "".join(f"<th>{html.escape(str(column.header))}</th>" for column in table.columns)
    columns = [[html.escape(str(cell)) for cell in column.cells] for column in table.columns]
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in zip(*columns, strict=True))
    return f"<table><caption>{html.escape(str(table.title))}</caption><tr>{head}</tr>{rows}</table>"
