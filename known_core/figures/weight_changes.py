"""How far the weights of each layer went: a ridge for each tensor, or for each run of tensors of a deep network."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from known_core.figures.candidates import colour
from known_core.figures.style import GRID, INK, MUTED, SMALL, WIDTH, new_figure, panel, plain, write

NAME = "weight_changes"
CAPTION = (
    "How far single weights went, a ridge for each tensor. A ridge to the right of zero grew, a wide one moved much; "
    "what only shrinks or grows all weights alike looks like the weights themselves, around zero."
)
_MOST_ROWS = 20
_ROW, _TOP, _LEFT, _RIGHT = 19.0, 30.0, 138.0, 50.0  # points
_OVERLAP = 1.5  # height of the highest ridge, in rows
_BINS = 80


def available(report: dict[str, Any]) -> bool:
    return bool(_tensors(report))


def title(report: dict[str, Any]) -> str:
    return f"Weight changes by layer: {report['weight_changes']['candidate']} against the given weights"


def describe(report: dict[str, Any]) -> str:
    """The size of the change in each row, in words."""
    rows = "; ".join(f"{label} {percent_of(change)}" for label, change, _ in _rows(report))
    return (
        "Distribution of the change of each weight, in percent of its tensor's root mean square in the given weights; "
        f"root mean square of the changes by layer, first to last: {rows}."
    )


def draw(report: dict[str, Any]) -> Figure:
    rows = _rows(report)
    height = len(rows) * _ROW
    top = _TOP + (_OVERLAP - 1) * _ROW
    figure = new_figure(top + height + 36)
    axes = panel(figure, _LEFT, top, WIDTH - _LEFT - _RIGHT, height)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_ylim(len(rows), 0)
    tint = colour(report["weight_changes"]["candidate"])
    limit = _limit(report)
    edges = np.linspace(-limit, limit, _BINS + 1)
    middles = 100 * (edges[1:] + edges[:-1]) / 2
    axes.set_xlim(-100 * limit, 100 * limit)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for place, (label, change, tensors) in enumerate(rows):
        density = _density(tensors, edges)
        ridge = place + 1 - _OVERLAP * density / density.max() if density.max() > 0 else np.full(_BINS, place + 1.0)
        order = 3 + place
        axes.fill_between(middles, place + 1, ridge, color=tint, alpha=0.32, lw=0, clip_on=False, zorder=order)
        axes.plot(middles, ridge, color=tint, linewidth=1, clip_on=False, zorder=order)
        down = top + (place + 1) * _ROW - 3
        write(figure, _LEFT - 8, down, label, size=SMALL, color=INK, ha="right")
        write(figure, WIDTH - 4, down, percent_of(change), size=SMALL, color=MUTED, ha="right")
    write(figure, WIDTH - 4, 12, "root mean square", size=SMALL, color=MUTED, ha="right")
    write(figure, 6, 12, "first layer on top", size=SMALL, color=MUTED)
    words = "change of a weight, % of its tensor's root mean square"
    write(figure, WIDTH - 4, top + height + 32, words, size=SMALL, color=MUTED, ha="right")
    return figure


def percent_of(change: float) -> str:
    return f"{100 * change:.3g} %" if change < 10 else f"x{change:.3g}"


def _tensors(report: dict[str, Any]) -> list[dict[str, Any]]:
    tensors = report.get("weight_changes", {}).get("tensors", [])
    return [tensor for tensor in tensors if tensor["histogram"]]


def _rows(report: dict[str, Any]) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """A label, the root mean square of the relative changes, and the tensors of each ridge."""
    tensors = _tensors(report)
    if len(tensors) <= _MOST_ROWS:
        groups = [[tensor] for tensor in tensors]
    else:
        groups = [list(group) for group in np.array_split(np.array(tensors, dtype=object), _MOST_ROWS)]
    found = []
    for group in groups:
        counts = np.array([tensor["weights"] for tensor in group], dtype=float)
        squares = np.array([tensor["change"] ** 2 for tensor in group])
        label = _label(group[0]["name"]) + (f" +{len(group) - 1}" if len(group) > 1 else "")
        found.append((label, float(np.sqrt((counts * squares).sum() / counts.sum())), group))
    return found


def _label(name: str) -> str:
    """The end of a tensor's name says most."""
    words = plain(name, 200)
    return words if len(words) <= 20 else "…" + words[-19:]


def _limit(report: dict[str, Any]) -> float:
    """Where the scale ends: what 98 % of the weights of most tensors stay below, so that one that leaps does not hide
    the others."""
    reaches = np.array([
        max(abs(tensor["quantiles"]["0.01"]), abs(tensor["quantiles"]["0.99"])) for tensor in _tensors(report)
    ])  # fmt: skip
    return float(min(reaches.max(), 3 * np.median(reaches))) * 1.1 or 1e-6


def _density(tensors: list[dict[str, Any]], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights in each bin, by the histograms of the tensors."""
    density = np.zeros(len(edges) - 1)
    for tensor in tensors:
        counts = np.array(tensor["histogram"]["counts"], dtype=float)
        low, high = tensor["histogram"]["low"], tensor["histogram"]["high"]
        if high <= low:
            low, high = low - 1e-6, high + 1e-6
        below = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
        share = np.interp(edges, np.linspace(low, high, len(below)), below)
        density += tensor["weights"] * np.diff(share)
    return np.convolve(density, [0.25, 0.5, 0.25], mode="same")
