"""How every figure looks: colours by role, in light and in dark; sizes in points, which a phone shows one to one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Place = tuple[float, float]
WIDTH = 389  # points
SIZE = 11  # of text, points
SMALL = 10

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


def plain(words: object, most: int = 60) -> str:
    """A stranger's words as one line of printable characters, of at most so many."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(words)).split())
    return line if len(line) <= most else line[: most - 1] + "…"


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
    figure.text(left / across, 1 - top / down, plain(words, 100), color=color, fontsize=size, va="baseline", **options)


def put_mark(figure: Figure, left: float, top: float, shape: str, **options: Any) -> None:
    """A mark at a place in points from the figure's upper left corner."""
    across, down = figure.get_size_inches() * 72
    figure.add_artist(Line2D([left / across], [1 - top / down], marker=shape, linestyle="none", **options))


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


def name_points(axes: Axes, labels: Sequence[tuple[str, Place, str]], lines: Sequence[tuple[Place, Place]]) -> None:
    """Names beside their marks, each where it covers least of the other marks, names and lines.

    Args:
        labels: words, the mark's place in the axes' units, and a colour; the first ones choose first.
        lines: straight ones, by their ends.
    """
    box, root = axes.get_window_extent(), axes.get_figure(root=True)
    assert root is not None
    pixel = 72 / root.dpi  # points
    marks = [axes.transData.transform(place) * pixel for _, place, _ in labels]
    edges = (box.x0 * pixel, box.y0 * pixel, box.x1 * pixel, box.y1 * pixel)
    taken = [(x - 6, y - 5, x + 6, y + 5) for x, y in marks]
    for ends in lines:
        begin, end = (axes.transData.transform(place) * pixel for place in ends)
        steps = np.linspace(0, 1, 2 + int(np.hypot(*(end - begin)) / 4))
        taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in begin + np.outer(steps, end - begin)]
    for own, ((words, _, colour), (x, y)) in enumerate(zip(labels, marks, strict=True)):
        words = plain(words, 24)
        width, height = 0.62 * SMALL * len(words), SMALL
        choices = [
            (x + dx - share * width, y + dy - height / 2, share)
            for far in (0.0, 8.0, 16.0)
            for dx, dy, share in (
                (7 + far, 0, 0), (-7 - far, 0, 1), (0, 11 + far, 0.5), (0, -11 - far, 0.5),
                (6 + far, 8 + far, 0), (6 + far, -8 - far, 0), (-6 - far, 8 + far, 1), (-6 - far, -8 - far, 1),
            )
        ]  # fmt: skip

        def cost(
            choice: tuple[float, float, float], own: int = own, size: tuple[float, float] = (width, height)
        ) -> float:
            left, low = choice[:2]
            place = (left, low, left + size[0], low + size[1])
            covered = sum(_overlap(place, other) for index, other in enumerate(taken) if index != own)
            return round(covered + 3 * (size[0] * size[1] - _overlap(place, edges)), 3)

        left, low, share = min(choices, key=cost)  # the first of the best
        taken.append((left - 4, low, left + width + 4, low + height))
        axes.annotate(
            words, labels[own][1], (left + share * width - x, low + 1.5 - y), textcoords="offset points",
            color=colour, fontsize=SMALL, ha=_SIDES[share], va="baseline", fontweight="bold", gid=HALO, zorder=9,
        )  # fmt: skip


_SIDES = {0: "left", 0.5: "center", 1: "right"}


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Of two boxes: left, low, right, high."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(up, 0)
