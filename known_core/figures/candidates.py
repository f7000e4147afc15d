"""What the figures say of candidates: which kind each is, its mark and colour, and figures in words."""

import re
from typing import Any

from known_core.figures.style import CONTROL, PREDICTION, plain

UNCHANGED = "unchanged"
_MARKS = {"continued": "^", "swa": "v", "mean": "<", "shrink": ">"}  # of controls; one colour is not told by hue alone


def is_prediction(name: str) -> bool:
    return re.fullmatch(r"x[\d.]+", name) is not None


def colour(name: str) -> str:
    return PREDICTION if is_prediction(name) else CONTROL


def mark(name: str) -> str:
    return "D" if is_prediction(name) else _MARKS.get(name, "s")


def metric(report: dict[str, Any]) -> str:
    return plain(report.get("metric") or "accuracy")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
