"""How every figure looks: colours by role, in light and in dark; sizes in points, which a phone shows one to one."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH = 389  # points
SIZE = 9.5  # of text, points
SMALL = 8.5

# role: light and dark. Told apart with every kind of colour vision (after Okabe and Ito 2008, darkened and lightened);
# each has a contrast of at least 4.5 to the page that it lies on, the grid alone has less (WCAG 2.2, 1.4.3 and 1.4.11).
PALETTE = {
    "ink": ("#1b1f24", "#e8ebee"),
    "muted": ("#57606a", "#a6b0ba"),
    "grid": ("#d8dee4", "#383f47"),
    "paper": ("#fffffe", "#15181c"),
    "blue": ("#0b62a8", "#6cb6f5"),
    "orange": ("#b34700", "#ff9d5c"),
    "green": ("#00704e", "#4ecfa0"),
}
INK, MUTED, GRID, PAPER, BLUE, ORANGE, GREEN = (light for light, _ in PALETTE.values())
HALO = "halo"  # gid of text that has to be read over other things

STATES, PREDICTION, CONTROL = BLUE, ORANGE, GREEN  # what a colour means in every figure


def new_figure(height: float) -> Figure:
    """A figure of the common width.

    Args:
        height: points.
    """
    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def panel(figure: Figure, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
    """Axes at a place in points from the figure's upper left corner, without a frame."""
    across, down = figure.get_size_inches() * 72
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), **options)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.spines[["left", "bottom"]].set_linewidth(0.7)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=SMALL, width=0.7, length=3, pad=2.5)
    axes.minorticks_off()
    return axes


def write(
    figure: Figure, left: float, top: float, words: str, *, color: str = INK, size: float = SIZE, **options: Any
) -> None:
    """One line of text at a place in points from the figure's upper left corner, on its baseline."""
    across, down = figure.get_size_inches() * 72
    figure.text(left / across, 1 - top / down, words, color=color, fontsize=size, va="baseline", **options)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least ``gap`` apart, and from ``low`` to ``high`` if they fit.

    For labels in a row: their centres along it.
    """
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    groups: list[list[int]] = []
    centres: list[float] = []
    for index in order:  # each group is labels that touch, around the mean of what they want
        groups.append([index])
        centres.append(wanted[index])
        while True:
            half = (len(groups[-1]) - 1) * gap / 2
            centres[-1] = min(max(sum(wanted[i] for i in groups[-1]) / len(groups[-1]), low + half), high - half)
            if len(groups) < 2 or centres[-1] - half - (centres[-2] + (len(groups[-2]) - 1) * gap / 2) >= gap - 1e-9:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
            centres[-2:] = [0.0]
    found = [0.0] * len(wanted)
    for group, centre in zip(groups, centres, strict=True):
        for place, index in enumerate(group):
            found[index] = centre + (place - (len(group) - 1) / 2) * gap
    return found
