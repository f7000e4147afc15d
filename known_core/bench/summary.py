"""From accuracies to what they say: paired gains with intervals, the share of the oracle's gain, tables, a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from known_core.bench.protocols import NAIVE, Protocol
from known_core.comparison import UNCHANGED, select
from known_core.points import points
from known_core.statistics import Interval, paired_interval

MATCHED = "shrink matched to "
METRICS = {"finetune": "fine-tuned", "probe": "linear probe"}
_RESAMPLES = 10_000


def crossed_bootstrap(differences: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a mean over two crossed factors, both resampled (Owen 2007, the pigeonhole bootstrap).

    Args:
        differences: (P, F) paired differences: pre-training seeds by fine-tuning seeds.
        confidence: of the two-sided interval.

    Raises:
        ValueError: unless there are at least two rows of equal length.
    """
    cells = np.asarray(differences, dtype=np.float64)
    if cells.ndim != 2 or cells.shape[0] < 2 or cells.shape[1] < 1:
        raise ValueError(f"differences must be (pre-training seeds >= 2, fine-tuning seeds); got {cells.shape}")
    generator = np.random.default_rng(seed)
    rows = generator.integers(cells.shape[0], size=(_RESAMPLES, cells.shape[0]))
    columns = generator.integers(cells.shape[1], size=(_RESAMPLES, cells.shape[1]))
    means = cells[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(cells.mean()), float(low), float(high), cells.size)


def data_multiplier(gain: float, oracle: Mapping[int, float]) -> float:
    """How many times the data a gain is worth: the oracle's gains, joined by lines over log2 of the multiple.

    Args:
        gain: of a method over naive.
        oracle: the oracle's gain by multiple. A larger set that gains less than a smaller one counts as much as it.

    Returns:
        From 1 (no gain) to the largest multiple (as much as that oracle, or more).
    """
    multiples = [1, *sorted(oracle)]
    gains = np.maximum.accumulate([0.0, *(oracle[multiple] for multiple in multiples[1:])])
    rising = [0, *(index for index in range(1, len(gains)) if gains[index] > gains[index - 1])]
    return float(2 ** np.interp(gain, gains[rising], np.log2(multiples)[rising]))


def summarise(protocol: Protocol, rows: Mapping[str, Mapping[str, Any]], known: Sequence[str]) -> dict[str, Any]:
    """What one protocol says.

    Args:
        rows: :func:`~known_core.bench.transfer.measure_protocol`'s.
        known: names of the hyper-models, the one in question first.

    Returns:
        The protocol's settings, whether it counts (by metric: the largest oracle gains a point or more, with an
        interval above zero), and a row a method with every gain; and ``best``, for each hyper-model the recurrence
        that the selection seed chose, with its gain over naive, over the shrinkage matched to it, over the same compute
        spent on plain averaged training, and over the best of each other hyper-model; and ``selected``, what a user
        would be given: of all methods but the oracles the one with the highest mean on the selection draws among those
        whose Student's t interval over naive lies above zero, else naive (as :func:`known_core.comparison.select`).
    """

    def gain(metric: str, method: str, over: str) -> Interval:
        return crossed_bootstrap(_cells(rows, method, metric) - _cells(rows, over, metric))

    oracles = {multiple: f"oracle x{multiple}" for multiple in protocol.multiples}
    counts, table = {}, []
    for metric in METRICS:
        top = gain(metric, oracles[max(oracles)], NAIVE) if oracles else None
        counts[metric] = bool(top and top.mean >= 0.01 and top.low > 0)
    ceilings = {
        metric: {multiple: gain(metric, name, NAIVE).mean for multiple, name in oracles.items()} for metric in METRICS
    }
    for name, row in rows.items():
        entry: dict[str, Any] = {"method": name, "variant": row["variant"], "learning_rate": row["learning_rate"]}
        entry["validation"] = float(np.mean(row["validation"]))
        for metric in METRICS:
            found = gain(metric, name, NAIVE)
            entry[metric] = {"mean": float(_cells(rows, name, metric).mean()), "gain": found.as_dict()}
            if counts[metric]:
                smallest = ceilings[metric][min(oracles)]
                entry[metric]["share_of_oracle_x2"] = found.mean / smallest if smallest > 0 else None
                entry[metric]["data_multiplier"] = data_multiplier(found.mean, ceilings[metric])
        for own in ("own", "retuned"):
            difference = np.asarray(row[own]) - np.asarray(rows[NAIVE][own])
            entry[own] = {
                "mean": float(np.mean(row[own])), "gain": crossed_bootstrap(difference[:, None]).as_dict(),
            }  # fmt: skip
        table.append(entry)
    best = {}
    chosen = {name: _chosen(rows, lambda method, n=name: method.startswith(f"{n} x")) for name in known}
    for name, method in chosen.items():
        if method is not None:
            others = {f"over_{other}": m for other, m in chosen.items() if m is not None and other != name}
            over = {"over_naive": NAIVE, "over_matched_shrink": MATCHED + method, "over_swa": "swa"} | others
            best[name] = {"method": method} | {
                metric: {key: gain(metric, method, other).as_dict() for key, other in over.items() if other in rows}
                for metric in METRICS
            }
    candidates = [name for name in rows if name != NAIVE and not name.startswith("oracle")]
    gains = {name: paired_interval(rows[name]["validation"], rows[NAIVE]["validation"]) for name in candidates}
    picked_name = select(gains)
    selected = NAIVE if picked_name == UNCHANGED else picked_name
    picked = {metric: gain(metric, selected, NAIVE).as_dict() for metric in METRICS}
    return {
        "protocol": protocol.as_dict(),
        "counts": counts,
        "rows": table,
        "best": best,
        "selected": {"method": selected} | picked,
    }


def _cells(rows: Mapping[str, Mapping[str, Any]], method: str, metric: str) -> NDArray[np.float64]:
    return np.asarray(rows[method][metric], dtype=np.float64)


def _chosen(rows: Mapping[str, Mapping[str, Any]], wanted: Any) -> str | None:
    names = [name for name in rows if wanted(name)]
    return max(names, key=lambda name: float(np.mean(rows[name]["validation"]))) if names else None


def render(results: Mapping[str, Any]) -> str:
    """All protocols as Markdown."""
    lines = ["# Transfer benchmark", "", "```sh", results["command"], "```", ""]
    lines += [
        "Gains over naive transfer in points of accuracy, the mean over pre-training and fine-tuning seeds with a 95%",
        "bootstrap interval over both. Every method has the learning rate, and where it has one the scale, that did",
        "best on a pre-training seed and a draw that report nothing. `worth` is the multiple of the data that, really",
        "had, gains as much.",
    ]
    for result in results["protocols"]:
        lines += _render_protocol(result)
    return "\n".join(lines) + "\n"


def _render_protocol(result: Mapping[str, Any]) -> list[str]:
    protocol = result["protocol"]
    counting = [METRICS[metric] for metric, counts in result["counts"].items() if counts]
    lines = [
        "", f"## {protocol['name']}", "",
        f"{protocol['data']}, {protocol['architecture']} of width {protocol['width']}; "
        f"D_0 of {protocol['examples']:,}, {protocol['epochs']} epochs; "
        f"{protocol['shots']} shots; {len(protocol['pretraining_seeds'])} x "
        f"{len(protocol['finetuning_seeds'])} seeds. "
        + (f"Counts: {' and '.join(counting)}." if counting else "Does not count: really more data gains too little."),
        "",
        "| method | scale | lr | fine-tuned | worth | linear probe | worth | own task | after re-tuning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        cells = [row["method"], row["variant"] or "–", f"{row['learning_rate']:g}"]
        for metric in METRICS:
            multiplier = row[metric].get("data_multiplier")
            if row["method"] == NAIVE:
                cells += [f"{100 * row[metric]['mean']:.2f} %", "–"]
            else:
                cells += [points(row[metric]["gain"]), f"x{multiplier:.2f}" if multiplier else "–"]
        cells += [f"{100 * row[own]['mean']:.2f} %" for own in ("own", "retuned")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| best of | is | over | fine-tuned | linear probe |", "|---|---|---|---|---|"]
    for name, best in result["best"].items():
        for over in best["finetune"]:
            words = over.removeprefix("over_").replace("_", " ")
            lines.append(
                f"| {name} | {best['method']} | {words} | {points(best['finetune'][over])} | "
                f"{points(best['probe'][over])} |"
            )
    picked = result["selected"]
    lines += [
        "",
        f"The selection picks {picked['method']}: fine-tuned {points(picked['finetune'])}, "
        f"linear probe {points(picked['probe'])}.",
    ]
    return lines


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Gains with their intervals, a panel a protocol; the matched shrinkages are left to the table."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "known"  # the same figures give the same file
    protocols = results["protocols"]
    figure, axes = pyplot.subplots(
        1, len(protocols), figsize=(4.2 * len(protocols), 6), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], protocols, strict=True):
        rows = [row for row in result["rows"] if not row["method"].startswith(MATCHED) and row["method"] != NAIVE]
        height = np.arange(len(rows))[::-1]
        for shift, (metric, words), colour in zip((0.14, -0.14), METRICS.items(), ("#1f5fa8", "#c8641e"), strict=True):
            gains = [row[metric]["gain"] for row in rows]
            mean = np.array([100 * gain["mean"] for gain in gains])
            spread = np.abs([[100 * gain["low"] for gain in gains], [100 * gain["high"] for gain in gains]] - mean)
            axis.errorbar(mean, height + shift, xerr=spread, fmt="o", ms=3, lw=1, color=colour, label=words)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.set_title(result["protocol"]["name"], fontsize=9)
        axis.set_yticks(height, [row["method"] for row in rows], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
    axes[0][0].legend(fontsize=7, loc="lower right")
    figure.supxlabel("gain over naive transfer, points of accuracy", fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
