"""The figures of a report: each is drawn from report.json alone, by matplotlib, as SVG, as PNG, or for a notebook."""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from PIL import Image

from known_core.errors import KnownError
from known_core.figures import before_after, forgetting, landscape, losses, weight_changes
from known_core.figures.style import HALO, PAPER
from known_core.figures.svg import CSS, drawing, to_svg

__all__ = ["CSS", "Figures", "figures_of", "plot", "render_png", "render_svg"]

Report = dict[str, Any]
_PNG_COLOURS = 128  # a third of the bytes, and no difference that is seen


@dataclass(frozen=True)
class _Kind:
    caption: str
    available: Callable[[Report], bool]
    title: Callable[[Report], str]
    describe: Callable[[Report], str]
    draw: Callable[[Report], Figure]


_KINDS = {
    module.NAME: _Kind(module.CAPTION, module.available, module.title, module.describe, module.draw)
    for module in (before_after, landscape, forgetting, weight_changes, losses)
}


def figures_of(report: Report) -> list[dict[str, str]]:
    """Each figure that the report has the data for: ``name``, ``title``, ``caption`` (how to read it), and
    ``description`` (what is drawn, in words, for those who do not see it).
    """
    return [
        {
            "name": name,
            "title": kind.title(report),
            "caption": kind.caption,
            "description": kind.describe(report),
        }
        for name, kind in _KINDS.items()
        if kind.available(report)
    ]


def render_svg(report: Report, name: str, *, standalone: bool = True) -> str:
    """One figure as SVG, in the page's theme; the same report gives the same bytes.

    Args:
        standalone: with its styles inside; a page that shows several figures has :data:`CSS` once instead.

    Raises:
        KnownError: ``figure_not_found``.
    """
    kind = _kind(report, name)
    with drawing():
        figure = kind.draw(report)
        return to_svg(figure, name, kind.title(report), kind.describe(report), standalone=standalone)


def render_png(report: Report, name: str, dots_per_inch: int = 200) -> bytes:
    """One figure as PNG on white; the same report gives the same bytes.

    Raises:
        KnownError: ``figure_not_found``.
    """
    with drawing():
        figure = _on_white(_kind(report, name).draw(report))
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dots_per_inch)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(_PNG_COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


class Figures(list[Figure]):
    """matplotlib's figures; a notebook shows them as SVG, in its own light or dark."""

    def __init__(self, report: Report, names: Iterable[str]) -> None:
        self._report, self._names = report, list(names)
        with drawing():
            super().__init__(_on_white(_kind(report, name).draw(report)) for name in self._names)

    def _repr_html_(self) -> str:
        return "".join(render_svg(self._report, name) for name in self._names)


def plot(report: Report, names: str | Iterable[str] | None = None) -> Figures:
    """The figures of a report, for a notebook or to be saved.

    Args:
        report: as ``report.json`` holds it.
        names: of figures, as :func:`figures_of` gives them; None is all that the report has the data for.

    Raises:
        KnownError: ``figure_not_found``.
    """
    if names is None:
        names = [figure["name"] for figure in figures_of(report)]
    return Figures(report, [names] if isinstance(names, str) else names)


def _kind(report: Report, name: str) -> _Kind:
    kind = _KINDS.get(name)
    if kind is None or not kind.available(report):
        there = ", ".join(figure["name"] for figure in figures_of(report)) or "none"
        raise KnownError("figure_not_found", f"the report has no figure {name[:80]!r}", f"It has: {there}.")
    return kind


def _on_white(figure: Figure) -> Figure:
    FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    for text in figure.findobj(Text):
        if text.get_gid() == HALO:
            text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
    return figure
