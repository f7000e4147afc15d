"""What was measured of the candidates, in figures and in words."""

from typing import Any

import numpy as np

from known_core.comparison import UNCHANGED, ProbeResult, compare, comparison, conclusion
from known_core.comparison import select as select_candidate
from known_core.errors import KnownError
from known_core.statistics import Interval, paired_interval


def findings(
    probes: dict[str, ProbeResult], scores: dict[str, list[float]], select: str, names: list[str]
) -> dict[str, Any]:
    """What was measured, what it says, and what is selected by it."""
    paired = _compare_scores(scores)
    own_task = {
        name: {
            "accuracy": float(np.mean(figures)),
            "difference": paired[name].as_dict() if name in paired else None,
        }
        for name, figures in scores.items()
    }
    measured = {"metric": "score", "own_task": own_task} if scores else {"metric": "score"}
    if probes:
        gains = compare({name: probe.accuracy for name, probe in probes.items()})
        selected = select_candidate(gains, select)
        seeds = len(next(iter(probes.values())).accuracy)
        return measured | {
            "conclusion": conclusion(gains, selected, select, "score"),
            "selected": selected,
            "transfer": comparison(probes, gains),
            "notes": [
                f"Intervals are Student's t over {seeds} paired fine-tuning seeds, 95%, not corrected for comparing "
                f"{len(gains)} candidates.",
                "The selection uses the same seeds that report it, so the selected gain is optimistic.",
            ],
        }
    note = "What a candidate is worth to fine-tune from, a probe measures: give one."
    if paired:
        selected = select_candidate(paired, select)
        return measured | {
            "conclusion": _in_words(paired, selected, select), "selected": selected,
            "notes": [f"Intervals are Student's t over {paired[names[0]].n} paired examples, 95%.", note],
        }  # fmt: skip
    selected = names[0] if select == "best" else select
    what = (
        "One figure for each candidate has no interval, so no gain can be shown" if scores else "Nothing was measured"
    )
    how = ", the smallest step back." if select == "best" else ", as you asked."
    return measured | {"conclusion": f"{what}. {selected} is selected{how}", "selected": selected, "notes": [note]}


def _compare_scores(scores: dict[str, list[float]]) -> dict[str, Interval]:
    """Paired differences to the weights given, where there is a figure for each example."""
    before = scores.get(UNCHANGED, [])
    if len(before) < 2:
        return {}
    if wrong := {name: len(figures) for name, figures in scores.items() if len(figures) != len(before)}:
        raise KnownError(
            "option_invalid", f"evaluate gave {len(before)} figures for the weights given, and {wrong}",
            "Return one figure for each example of one data set.",
        )  # fmt: skip
    return {name: paired_interval(after, before) for name, after in scores.items() if name != UNCHANGED}


def _in_words(gains: dict[str, Interval], selected: str, select: str) -> str:
    if selected == UNCHANGED:
        best = max(gains, key=lambda name: gains[name].mean)
        return (
            "Nothing was gained: no candidate's interval lies above zero, so your weights are selected, unchanged. The "
            f"highest mean was {best} with {_interval(gains[best])}."
        )
    asked = "" if select == "best" else f"You asked for {selected}. "
    shown = "a gain was shown" if gains[selected].above_zero else "no gain was shown"
    return f"{asked}{selected} changes the score by {_interval(gains[selected])}: {shown}."


def _interval(gain: Interval) -> str:
    return f"{gain.mean:+.4g} [{gain.low:+.4g}, {gain.high:+.4g}]"
