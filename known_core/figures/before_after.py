"""Before and after: the gain of each candidate over the given weights in the transfer probe, with its interval."""

from typing import Any

from matplotlib.figure import Figure

from known_core.figures.candidates import UNCHANGED, colour, mark, metric, percent
from known_core.figures.style import GRID, MUTED, SMALL, WIDTH, new_figure, panel, write
from known_core.points import points, signed

NAME = "before_after"
CAPTION = (
    "Every candidate was fine-tuned on the same downstream examples, seed by seed. A mark is the mean difference to "
    "the given weights, the line its 95 % interval, a circle one seed. Only a line that is right of zero shows a gain."
)
_ROW, _TOP, _LEFT, _RIGHT = 34.0, 32.0, 122.0, 96.0  # points


def available(report: dict[str, Any]) -> bool:
    return bool(_rows(report))


def title(report: dict[str, Any]) -> str:
    return f"Before and after: gain in downstream {metric(report)}"


def describe(report: dict[str, Any]) -> str:
    """Every figure that is drawn, in words."""
    rows = "; ".join(f"{name} {points(row['gain'])}" for name, row in _rows(report).items())
    return (
        f"Mean paired gain of each candidate over the given weights ({percent(_before(report)['mean'])}) in points of "
        f"{metric(report)}, with its 95 % interval: {rows}. Delivered: {report['selected']}."
    )


def draw(report: dict[str, Any]) -> Figure:
    rows, before = _rows(report), _before(report)
    height = len(rows) * _ROW
    figure = new_figure(_TOP + height + 38)
    axes = panel(figure, _LEFT, _TOP, WIDTH - _LEFT - _RIGHT, height)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, (name, row) in enumerate(rows.items()):
        gain, tint = row["gain"], colour(name)
        paired = [100 * (after - given) for after, given in zip(row["accuracy"], before["accuracy"], strict=True)]
        axes.plot(paired, [place + 0.22] * len(paired), "o", ms=3, mfc="none", mew=0.7, color=MUTED)
        axes.plot([100 * gain["low"], 100 * gain["high"]], [place, place], color=tint, linewidth=2.2)
        axes.plot([100 * gain["mean"]], [place], mark(name), ms=6.5, color=tint)
        delivered = name == report["selected"]
        top = _TOP + (place + 0.5) * _ROW
        weight = "bold" if delivered else "normal"
        write(figure, 6, top + (-1 if delivered else 3.5), name, fontweight=weight)
        if delivered:
            write(figure, 6, top + 12, "delivered", color=MUTED, size=SMALL)
        write(figure, _LEFT - 8, top + 3.5, percent(row["mean"]), color=MUTED, size=SMALL, ha="right")
        right = WIDTH - 4
        write(figure, right, top - 1, signed(gain["mean"]), color=tint, fontweight="bold", ha="right")
        words = f"[{signed(gain['low'])}, {signed(gain['high'])}]"
        write(figure, right, top + 12, words, color=MUTED, size=SMALL, ha="right")
    axes.margins(x=0.06)
    write(figure, 6, 14, f"unchanged: {percent(before['mean'])} downstream {metric(report)}", size=SMALL, color=MUTED)
    write(figure, WIDTH - 4, 14, "mean [95 %]", size=SMALL, color=MUTED, ha="right")
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    words = "gain over unchanged, points; a circle is one pair"
    write(figure, middle, _TOP + height + 32, words, size=SMALL, color=MUTED, ha="center")
    return figure


def _rows(report: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in report.get("transfer", {}).items() if name != UNCHANGED and row["gain"]}


def _before(report: dict[str, Any]) -> dict[str, Any]:
    before: dict[str, Any] = report["transfer"][UNCHANGED]
    return before
