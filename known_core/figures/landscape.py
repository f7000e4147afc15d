"""The trajectory, the predictions and the controls in the plane of the states, over the loss (the paper's figure)."""

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from known_core.figures.candidates import UNCHANGED, colour, is_prediction, mark
from known_core.figures.style import (
    BLUE,
    HALO,
    INK,
    MUTED,
    SMALL,
    STATES,
    WIDTH,
    Place,
    name_points,
    new_figure,
    panel,
    write,
)

NAME = "landscape"
CAPTION = (
    "All weights, seen in the plane in which the trajectory lies best. Blue is forgetting, from the given weights to "
    "ever less data; orange are predictions, green the candidates without one. What lies beside the plane is seen from "
    "straight above, so its own loss may differ from the shade under it."
)
_LEFT, _TOP, _PANEL, _RIGHT = 38.0, 24.0, 262.0, 8.0  # points
_LEVELS = 9
_SAME = 1e-3  # of an axis: what is closer is one place
_FINE = 61  # points along each axis that contours are drawn through
_EDGE = 14.0  # points: labels of lines that would come closer to it are left out


Label = tuple[str, Place, str]  # words, where, colour


def available(report: dict[str, Any]) -> bool:
    return bool(report.get("plane"))


def title(report: dict[str, Any]) -> str:
    over = ", over the loss" if report["plane"].get("surface") else ""
    return f"Trajectory and candidates in the plane of the states{over}"


def describe(report: dict[str, Any]) -> str:
    """Where everything lies, in words."""
    plane = report["plane"]
    surface = plane.get("surface")
    losses: dict[str, float | None] = surface["at"] if surface else {}
    places = "; ".join(
        f"{name} ({_percent(point['a'], plane)}, {_percent(point['b'], plane)}), beside the plane by "
        f"{_percent(point['beside'], plane)}" + (f", loss {losses[name]:.3g}" if losses.get(name) is not None else "")
        for name, point in plane["points"].items()
    )
    first, second = plane["shares"]
    text = (
        f"The axes are the principal components of the states' differences to the given weights and hold {first:.0%} "
        f"and {second:.0%} of their squared length. Positions in percent of the length of the given weights: {places}."
    )
    if surface:
        text += f" The loss is the mean over {surface['examples']} held-out examples at each point of a grid"
        if surface["batch_norm"]:
            text += f", with batch-norm statistics estimated again there on {surface['batch_norm']} training examples"
        given = losses[UNCHANGED]
        text += "." if given is None else f"; at the given weights {given:.3g}."
    return text


def draw(report: dict[str, Any]) -> Figure:
    plane = report["plane"]
    surface, scale = plane.get("surface"), 100 / plane["length"]
    figure = new_figure(_TOP + _PANEL + 66)
    axes = panel(figure, _LEFT, _TOP, WIDTH - _LEFT - _RIGHT, _PANEL)
    points = {name: (scale * point["a"], scale * point["b"]) for name, point in plane["points"].items()}
    states = [place for name, place in points.items() if name.startswith("state ")]
    _set_limits(axes, [(0.0, 0.0), *points.values()], surface, scale)
    if surface:
        _contour(axes, surface, scale)
    stops = [(0.0, 0.0), *states]
    starts = [(0.0, 0.0)] * len(states) if _is_fan(report) else stops[:-1]
    arrows = list(zip(starts, states, strict=True))
    for start, end in arrows:
        axes.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>,head_width=0.18,head_length=0.4", "color": STATES, "linewidth": 1.3,
            "shrinkA": 0, "shrinkB": 3,
        })  # fmt: skip
    axes.plot(*zip(*states, strict=True), "o", color=STATES, ms=5)
    axes.plot([0], [0], "s", color=INK, ms=8, zorder=5)
    labels: list[Label] = [("given weights", (0.0, 0.0), INK)]
    labels += [(name.removeprefix("state "), points[name], STATES) for name in points if name.startswith("state ")]
    for name, place in points.items():
        if not name.startswith("state "):
            tint = colour(name)
            fill = tint if is_prediction(name) else "none"
            axes.plot(*place, mark(name), color=tint, mfc=fill, mew=1.4, ms=7)
            _add_label(labels, name, place, tint, axes)
    name_points(axes, labels, arrows)
    shares = plane["shares"]
    write(figure, _LEFT - 32, 12, f"second axis ({shares[1]:.0%}), % of the given weights' length", size=SMALL,
          color=MUTED)  # fmt: skip
    bottom = _TOP + _PANEL
    write(figure, _LEFT, bottom + 30, f"first axis ({shares[0]:.0%} of the trajectory), %", size=SMALL, color=MUTED)
    write(figure, _LEFT, bottom + 45, "circles 1 to 4: the states", size=SMALL, color=MUTED)
    if surface:
        words = f"shade and lines: loss on {surface['examples']} held-out examples"
        write(figure, _LEFT, bottom + 60, words, size=SMALL, color=MUTED)
    return figure


def _add_label(labels: list[Label], name: str, place: Place, tint: str, axes: Axes) -> None:
    """What lies where a state does (``continued`` is the first state of a fan) shares its label."""
    reach = [_SAME * (high - low) for low, high in (axes.get_xlim(), axes.get_ylim())]
    for index, (words, other, _) in enumerate(labels):
        if all(abs(one - two) <= far for one, two, far in zip(place, other, reach, strict=True)):
            labels[index] = (f"{words} = {name}", place, tint)
            return
    labels.append((name, place, tint))


def _percent(value: float, plane: dict[str, Any]) -> str:
    return f"{100 * value / plane['length']:.3g} %"


def _is_fan(report: dict[str, Any]) -> bool:
    return bool(report["hypermodel"].get("design") == "fan")


def _set_limits(axes: Axes, places: list[tuple[float, float]], surface: dict[str, Any] | None, scale: float) -> None:
    if surface:
        axes.set_xlim(scale * surface["a"][0], scale * surface["a"][-1])
        axes.set_ylim(scale * surface["b"][0], scale * surface["b"][-1])
        return
    (left, low), (right, high) = np.min(places, axis=0), np.max(places, axis=0)
    across, up = 0.12 * (right - left) or 1.0, 0.12 * (high - low) or 1.0
    axes.set_xlim(left - across, right + across)
    axes.set_ylim(low - up, high + up)


def _contour(axes: Axes, surface: dict[str, Any], scale: float) -> None:
    loss = np.array([[np.nan if value is None else value for value in row] for row in surface["loss"]], dtype=float)
    a, b = (scale * np.array(surface[axis]) for axis in ("a", "b"))
    levels = _levels(loss)
    if len(levels) < 2:
        return
    if (loss > 0).all():  # between the points of the grid: the cubic spline of its logarithm
        spline = RectBivariateSpline(b, a, np.log(loss), kx=min(3, len(b) - 1), ky=min(3, len(a) - 1))
        a, b = (np.linspace(axis[0], axis[-1], _FINE) for axis in (a, b))
        loss = np.exp(spline(b, a))
    masked = np.ma.masked_invalid(np.clip(loss, levels[0], levels[-1]))
    for step, (low, high) in enumerate(pairwise(levels)):
        axes.contourf(a, b, masked, levels=[low, high], colors=[BLUE], alpha=0.05 + 0.33 * step / len(levels))
    lines = axes.contour(a, b, masked, levels=levels[1:-1], colors=[MUTED], linewidths=0.5, alpha=0.75)
    for text in axes.clabel(lines, levels[1:-1:2], inline=False, fontsize=SMALL - 1, fmt=lambda level: f"{level:.3g}"):
        across, up = axes.transAxes.inverted().transform(axes.transData.transform(text.get_position()))
        if not (_EDGE / (WIDTH - _LEFT - _RIGHT) < across < 1 - _EDGE / (WIDTH - _LEFT - _RIGHT)):
            text.set_visible(False)
        if not (_EDGE / _PANEL < up < 1 - _EDGE / _PANEL):
            text.set_visible(False)
        text.set_alpha(1)
        text.set_gid(HALO)
        text.set_rotation_mode("anchor")


def _levels(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """Closer where the loss is low: in equal steps of its logarithm, up to what most of the grid is below."""
    finite = loss[np.isfinite(loss)]
    if not finite.size or finite.max() <= finite.min():
        return np.array([])
    low, high = float(finite.min()), float(np.quantile(finite, 0.95))
    if low <= 0 or high / low < 1.05:
        return np.linspace(low, float(finite.max()), _LEVELS)
    return np.geomspace(low, high, _LEVELS)
