"""A report drawn in a terminal, in text alone: intervals as bars, curves as blocks."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from known_core.comparison import UNCHANGED
from known_core.points import points

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32  # characters
_BAR = 31


def draw_report(report: dict[str, Any], console: Console) -> None:
    """The conclusion first, then gains, own task, curves and notes."""
    console.print(Text(report["conclusion"], style="bold"), soft_wrap=True)
    if "transfer" in report:
        console.print(_gains(report))
        console.print(_own_task(report))
    if curves := _curves(report):
        console.print(curves)
    for note in report["notes"]:
        console.print(Text(f"- {note}", style="dim"), soft_wrap=True)


def sparkline(values: Sequence[float], low: float, high: float, width: int = _CURVE) -> str:
    """Values as a row of blocks, at most so many: each block is the mean of its share of them.

    Args:
        low, high: what the lowest and the highest block stand for.
    """
    if not values:
        return ""
    width = min(width, len(values))
    shares = [values[at * len(values) // width : (at + 1) * len(values) // width] for at in range(width)]
    heights = [(sum(share) / len(share) - low) / (high - low) if high > low else 0.5 for share in shares]
    return "".join(_BLOCKS[min(max(round(height * (len(_BLOCKS) - 1)), 0), len(_BLOCKS) - 1)] for height in heights)


def interval_bar(gain: dict[str, float], low: float, high: float, width: int = _BAR) -> str:
    """An interval as ``├──●──┤`` on a scale, with zero as ``│``."""

    def place(value: float) -> int:
        return min(max(round((value - low) / (high - low) * (width - 1)), 0), width - 1) if high > low else width // 2

    cells = [" "] * width
    cells[place(0.0)] = "│"
    begin, end = place(gain["low"]), place(gain["high"])
    for at in range(begin, end + 1):
        cells[at] = "┼" if cells[at] == "│" else "─"
    cells[begin], cells[end] = "├", "┤"
    cells[place(gain["mean"])] = "●"
    return "".join(cells)


def _gains(report: dict[str, Any]) -> Table:
    rows = report["transfer"]
    gains = [row["gain"] for row in rows.values() if row["gain"]]
    low, high = min(0.0, *(gain["low"] for gain in gains)), max(0.0, *(gain["high"] for gain in gains))
    table = _table(f"Gain over {UNCHANGED} in downstream {report['metric']}, points [95 %]")
    for column in ("candidate", "mean, %", "interval", "gain"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("mean, %", "gain") else "left")
    for name, row in rows.items():
        delivered = name == report["selected"]
        table.add_row(
            Text(name + (" *" if delivered else "")),
            f"{100 * row['mean']:.2f}",
            Text(interval_bar(row["gain"], low, high) if row["gain"] else ""),
            Text(points(row["gain"])),
            style="bold" if delivered else None,
        )
    table.caption = "* delivered"
    return table


def _own_task(report: dict[str, Any]) -> Table:
    table = _table(f"D_0's own task, {report['metric']} in %")
    for column in ("candidate", "as it is", "difference", "loss"):
        table.add_column(column, no_wrap=True, justify="left" if column == "candidate" else "right")
    for name, row in report["own_task"].items():
        table.add_row(Text(name), f"{100 * row['accuracy']:.2f}", Text(points(row["difference"])), f"{row['loss']:.4f}")
    return table


def _curves(report: dict[str, Any]) -> Table | None:
    losses = [stage for stage in report.get("losses", []) if stage["curve"]]
    forgetting = report.get("forgetting_accuracy")
    if not losses and not forgetting:
        return None
    table = _table("Curves")
    for column in ("", "from", "over the steps, or ever fewer examples", "to"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("from", "to") else "left")
    highest = max((loss for stage in losses for _, loss in stage["curve"]), default=0.0)
    for stage in losses:
        values = [loss for _, loss in stage["curve"]]
        drawn = Text(sparkline(values, 0.0, highest), style="blue")
        table.add_row(Text(f"loss, {stage['name']}"), f"{values[0]:.3f}", drawn, f"{values[-1]:.3f}")
    if forgetting:
        drawn = Text(sparkline(forgetting, min(forgetting), max(forgetting)), style="blue")
        label = Text(f"{report['metric']}, %")
        table.add_row(label, f"{100 * forgetting[0]:.1f}", drawn, f"{100 * forgetting[-1]:.1f}")
    return table


def _table(title: str) -> Table:
    return Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
