"""How values look on a page: times, sizes, durations, percentages."""

import json
import re
from datetime import datetime
from typing import Any

from markupsafe import Markup

from app.jobs.record import JobStatus
from app.jobs.schemas import JobView
from known_core.points import points

__all__ = ["as_json", "duration", "percent", "points", "size", "took", "when", "words"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def when(text: str | None) -> Markup | str:
    """A time of the API, RFC 3339 in UTC, to the second; the reader's own zone where scripts run."""
    if text is None:
        return "–"
    return Markup('<time datetime="{}">{} UTC</time>').format(text, text[:19].replace("T", " "))


def duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def took(job: JobView) -> str:
    """From the first start to the end, of a job that has both."""
    if job.started_at is None or job.finished_at is None:
        return "–"
    started, finished = (datetime.fromisoformat(text) for text in (job.started_at, job.finished_at))
    return duration((finished - started).total_seconds())


def size(count: float) -> str:
    """Bytes, in the largest unit of which there is one."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def words(name: str | JobStatus) -> str:
    """evaluating_before as evaluating before."""
    return re.sub(r"[_-]", " ", str(name))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
