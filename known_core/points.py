"""How differences look: in percentage points, two decimals, always signed."""

from collections.abc import Mapping


def signed(share: float) -> str:
    """0.008 as +0.80; what rounds to nothing has a plus, whatever side it is on."""
    return f"{100 * share:+z.2f}"


def points(interval: Mapping[str, float] | None) -> str:
    """A paired difference with its interval: +0.80 [+0.31, +1.29]; a dash where there is none.

    Args:
        interval: ``mean``, ``low`` and ``high``, as :meth:`known_core.statistics.Interval.as_dict` gives them.
    """
    if interval is None:
        return "–"
    return f"{signed(interval['mean'])} [{signed(interval['low'])}, {signed(interval['high'])}]"
