"""The training loss of each stage of forgetting, and of each control that is trained."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from known_core.figures.style import CONTROL, GRID, MUTED, SMALL, STATES, WIDTH, new_figure, panel, plain, write

NAME = "losses"
CAPTION = (
    "The thin line is the loss of each step, or the mean of a few; the heavy one runs through their middle. It should "
    "fall or stay level: one that rises asks for a lower forgetting.learning_rate."
)
_ACROSS, _LEFT, _GAP, _PANEL, _TOP, _BETWEEN = 3, 36.0, 16.0, 74.0, 32.0, 56.0  # panels a row, then points
_SMOOTHED = 12  # parts of a curve that the heavy line is the mean over


def available(report: dict[str, Any]) -> bool:
    return bool(_curves(report))


def title(report: dict[str, Any]) -> str:
    return "Training loss of each stage"


def describe(report: dict[str, Any]) -> str:
    """Where each curve begins and ends, in words."""
    ends = []
    for stage in _curves(report):
        smooth = _smooth([loss for _, loss in stage["curve"]])
        ends.append(f"{plain(stage['name'])} ({stage['examples']:,} examples) from {smooth[0]:.3g} to {smooth[-1]:.3g}")
    return f"Loss over the steps of each training: {'; '.join(ends)}."


def draw(report: dict[str, Any]) -> Figure:
    stages = _curves(report)
    rows = -(-len(stages) // _ACROSS)
    figure = new_figure(_TOP + rows * _PANEL + (rows - 1) * _BETWEEN + 34)
    width = (WIDTH - _LEFT - 6 - (_ACROSS - 1) * _GAP) / _ACROSS
    highest = max(loss for stage in stages for _, loss in stage["curve"])
    for place, stage in enumerate(stages):
        row, column = divmod(place, _ACROSS)
        left, top = _LEFT + column * (width + _GAP), _TOP + row * (_PANEL + _BETWEEN)
        axes = panel(figure, left, top, width, _PANEL)
        steps, losses = np.array(stage["curve"]).T
        tint = STATES if stage["name"].startswith("state") else CONTROL
        axes.plot(steps, losses, color=tint, linewidth=0.8, alpha=0.4)
        axes.plot(steps, _smooth(losses.tolist()), color=tint, linewidth=1.7)
        axes.set_ylim(0, 1.05 * highest or 1)
        axes.set_xlim(0, steps[-1])
        axes.set_xticks([0, steps[-1]], ["0", f"{steps[-1]:,.0f}"])
        first, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        axes.locator_params(axis="y", nbins=4)
        if column:
            axes.tick_params(labelleft=False)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        write(figure, left, top - 18, plain(stage["name"], 16), fontweight="bold", color=tint)
        write(figure, left, top - 5, f"{stage['examples']:,} examples", size=SMALL, color=MUTED)
    bottom = _TOP + rows * _PANEL + (rows - 1) * _BETWEEN
    write(
        figure, _LEFT, bottom + 30, "optimiser steps; all panels share the scale of the loss", size=SMALL, color=MUTED
    )
    return figure


def _curves(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [stage for stage in report.get("losses", []) if stage["curve"]]


def _smooth(losses: list[float]) -> list[float]:
    """The mean around each point, over a part of the curve."""
    reach = max(1, len(losses) // _SMOOTHED) // 2
    return [float(np.mean(losses[max(0, at - reach) : at + reach + 1])) for at in range(len(losses))]
