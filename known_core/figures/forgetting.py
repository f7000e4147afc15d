"""The forgetting curve: how each state does on D_0's own task, by the examples it was trained on."""

import math
from typing import Any

from matplotlib.figure import Figure

from known_core.figures.candidates import UNCHANGED, colour, is_prediction, mark, metric, percent
from known_core.figures.style import GRID, INK, MUTED, SMALL, STATES, WIDTH, new_figure, panel, put_mark, spread, write

NAME = "forgetting"
CAPTION = (
    "How the given weights and each state of the trajectory do on the task they were trained for. Predictions may lie "
    "below the given weights here and still be the better start to fine-tune from: the figure before says which."
)
_LEFT, _TOP, _PANEL, _RIGHT = 34.0, 22.0, 168.0, 142.0  # points
_LINE = 14.0  # between the labels of marks


def available(report: dict[str, Any]) -> bool:
    return bool(report.get("forgetting_accuracy")) and bool(report.get("own_task"))


def title(report: dict[str, Any]) -> str:
    return f"Forgetting: {metric(report)} on the given weights' own task"


def describe(report: dict[str, Any]) -> str:
    """Every figure that is drawn, in words."""
    states = zip(report["forgetting_accuracy"], report["forgetting_examples"], strict=True)
    curve = ", ".join(f"{percent(value)} ({count:,})" for value, count in states)
    marks = ", ".join(f"{name} {percent(row['accuracy'])}" for name, row in _marks(report).items())
    return (
        f"{metric(report).capitalize()} of the given weights and of each state of the trajectory, with the examples it "
        f"was trained on: {curve}. Candidates, as predicted or trained: {marks}."
    )


def draw(report: dict[str, Any]) -> Figure:
    figure = new_figure(_TOP + _PANEL + 38)
    axes = panel(figure, _LEFT, _TOP, WIDTH - _LEFT - _RIGHT, _PANEL)
    examples, states = report["forgetting_examples"], [100 * value for value in report["forgetting_accuracy"]]
    axes.set_xscale("log", base=2)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.plot(examples, states, "-", color=STATES, linewidth=1.7, clip_on=False)
    axes.plot(examples[1:], states[1:], "o", color=STATES, ms=5.5, clip_on=False)
    axes.plot(examples[:1], states[:1], "s", color=INK, ms=8, clip_on=False)
    labels = [("given weights", states[0], INK, "s", INK)]
    places = list(examples)
    for name, row in _marks(report).items():
        # a prediction stands at the data that it stands for
        place = examples[0] * float(name[1:]) if is_prediction(name) else examples[0]
        value = 100 * row["accuracy"]
        tint = colour(name)
        fill = tint if is_prediction(name) else "none"
        axes.plot([place], [value], mark(name), color=tint, mfc=fill, mew=1.3, ms=6.5, clip_on=False)
        labels.append((name, value, tint, mark(name), fill))
        places.append(place)
    ticks = _ticks(sorted(set(places)), WIDTH - _LEFT - _RIGHT)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.05, y=0.1)
    low, high = axes.get_ylim()
    low, high = axes.set_ylim(max(low, 0.0), min(high, 100.0))
    right = WIDTH - _RIGHT + 22
    down = [_TOP + (high - value) / (high - low) * _PANEL for _, value, *_ in labels]
    for (name, value, tint, shape, fill), top in zip(labels, spread(down, _LINE, _TOP, _TOP + _PANEL), strict=True):
        put_mark(figure, right - 9, top, shape, color=tint, mfc=fill, mew=1, ms=5)
        write(figure, right, top + 3, name, color=tint, size=SMALL)
        write(figure, WIDTH - 4, top + 3, f"{value:.1f}", color=tint, size=SMALL, ha="right")
    write(figure, _LEFT - 28, 12, f"{metric(report)}, %", size=SMALL, color=MUTED)
    words = "examples trained on, or that a prediction stands for"
    write(figure, _LEFT, _TOP + _PANEL + 32, words, size=SMALL, color=MUTED)
    return figure


def _marks(report: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in report["own_task"].items() if name != UNCHANGED}


def _ticks(places: list[float], width: float) -> list[float]:
    """Of the places, from the largest down, those whose labels do not touch."""
    span = math.log2(places[-1] / places[0]) or 1.0
    kept: list[float] = []
    for place in reversed(places):
        room = 6 + 3.1 * (len(f"{place:,.0f}") + (len(f"{kept[-1]:,.0f}") if kept else 0))
        if not kept or math.log2(kept[-1] / place) / span * width >= room:
            kept.append(place)
    return kept[::-1]
