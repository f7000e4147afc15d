"""The before/after report, as data and as words. It holds no times and no paths: the same run gives the same bytes."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from known_core.comparison import UNCHANGED, ProbeResult, compare, comparison, conclusion, select
from known_core.spec import JobSpec
from known_core.statistics import paired_interval

if TYPE_CHECKING:
    from known_core.tasks.base import Scores  # which loads transformers

_HARMED = 0.05  # loss of the metric that no noise of a small evaluation set explains
_SETTINGS = {"task", "data", "downstream_data", "forgetting", "nowcast", "evaluation", "output"}


def build_report(
    spec: JobSpec,
    *,
    inputs: dict[str, Any],
    hypermodel: dict[str, str],
    weights_predicted: dict[str, int],
    forgetting_accuracy: list[float],
    forgetting_examples: list[int],
    scores: "dict[str, Scores]",
    probes: dict[str, ProbeResult],
) -> dict[str, Any]:
    """Everything the job found.

    Args:
        inputs: what was understood of model and data.
        hypermodel: its name and sha256.
        weights_predicted: weights by kind, and those carried over.
        forgetting_accuracy: D_0's own task at Θ_0 and at each state of the trajectory, most data first.
        forgetting_examples: how many examples each of these was trained on.
        scores: per-example results on D_0's own task, for ``unchanged`` and every candidate.
        probes: downstream accuracy over seeds, likewise.
    """
    gains = compare({name: probe.accuracy for name, probe in probes.items()})
    selected = select(gains, spec.evaluation.select)
    before = scores[UNCHANGED]
    return {
        "conclusion": conclusion(gains, selected, spec.evaluation.select, inputs["metric"]),
        "selected": selected,
        "task": inputs["task"],
        "metric": inputs["metric"],
        "library": inputs["library"],
        "sources": inputs["sources"],
        "inputs": inputs,
        "hypermodel": hypermodel,
        "weights_predicted": weights_predicted,
        "settings": spec.model_dump(mode="json", include=_SETTINGS),
        "transfer": comparison(probes, gains),
        "own_task": {
            name: {
                "accuracy": float(score.correct.mean()),
                "loss": float(score.loss.mean()),
                "difference": paired_interval(score.correct, before.correct).as_dict() if name != UNCHANGED else None,
            }
            for name, score in scores.items()
        },
        "forgetting_accuracy": forgetting_accuracy,
        "forgetting_examples": forgetting_examples,
        "notes": [
            *_notes(inputs, len(gains), spec.evaluation.seeds, float(before.correct.mean())),
            *_harm(forgetting_accuracy, forgetting_examples),
        ],
    }


def _notes(inputs: dict[str, Any], candidates: int, seeds: int, accuracy: float) -> list[str]:
    notes = [
        f"Intervals are Student's t over {seeds} paired fine-tuning seeds, 95%, not corrected for comparing "
        f"{candidates} candidates.",
        "The selection uses the same seeds that report it, so the selected gain is optimistic.",
    ]
    if inputs["evaluation_source"] != "test split":
        notes.append(
            "The data set has no test split: the examples held out for evaluation may have been among those the given "
            "weights were trained on, which flatters the weights before. Give a test split for a fair figure."
        )
    counts = inputs["dataset"].get("train", {}).values()
    commonest = max(counts) / sum(counts) if counts else 0.0
    if counts and accuracy < commonest + 0.1 * (1 - commonest):
        notes.append(
            f"The given weights reach {100 * accuracy:.1f} % on their own task; always naming the commonest class of "
            f"the training data would reach about {100 * commonest:.1f} %. Check that class names and preprocessing "
            "are those the weights were trained with."
        )
    return notes


def _harm(accuracy: list[float], examples: list[int]) -> list[str]:
    """Said where training on all of D_0 made the given weights clearly worse at it."""
    if examples[1] < examples[0] or accuracy[1] > accuracy[0] - _HARMED:
        return []
    return [
        f"Training the given weights on all of their own data took them from {100 * accuracy[0]:.1f} % to "
        f"{100 * accuracy[1]:.1f} % on it. Lower forgetting.learning_rate; if that does not help, the data or its "
        "preprocessing are not what the weights, or their batch-normalisation statistics, come from."
    ]


def describe_trajectory(
    spec: JobSpec,
    *,
    inputs: dict[str, Any],
    hypermodel: dict[str, str],
    design: str,
    weights_predicted: dict[str, int],
    names: list[str],
) -> dict[str, Any]:
    """The report of a job without data: what was predicted, and that nothing was measured.

    Args:
        design: how the hyper-model read the states, "chain" or "fan".
        names: every candidate, the smallest step first.
    """
    wish = spec.evaluation.select
    selected = names[0] if wish == "best" else wish
    return {
        "conclusion": f"Nothing was measured: the job had five states and no data. {selected} is delivered"
        + (", the smallest step back." if wish == "best" else ", as you asked."),
        "selected": selected,
        "task": None,
        "library": None,
        "sources": inputs["sources"],
        "inputs": inputs,
        "hypermodel": {**hypermodel, "design": design},
        "weights_predicted": weights_predicted,
        "settings": spec.model_dump(mode="json", include={"nowcast", "output"}) | {"rate": spec.forgetting.rate},
        "notes": [
            f"{hypermodel['name']} read the states as a {design}, the most recent first.",
            "Batch-normalisation statistics are those of the most recent state: re-estimate them before use.",
            "Whether the predictions are better to fine-tune from, only a comparison on your data can say.",
        ],
    }


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the words first, then the figures."""
    if "transfer" not in report:
        lines = ["# Prediction from a trajectory", "", report["conclusion"], "", _hypermodel_line(report), ""]
        return "\n".join([*lines, "## Notes", "", *(f"- {note}" for note in report["notes"])]) + "\n"
    metric = report["metric"]
    lines = ["# Before and after", "", report["conclusion"], "", f"## Transfer probe (downstream {metric}, %)", ""]
    lines += ["| candidate | mean | gain over unchanged, points [95%] | learning rate |", "|---|---|---|---|"]
    for name, row in report["transfer"].items():
        lines.append(f"| {name} | {100 * row['mean']:.2f} | {_interval(row['gain'])} | {row['learning_rate']:g} |")
    lines += ["", f"## D_0's own task ({metric} as predicted, %)", ""]
    lines += [f"| candidate | {metric} | difference, points [95%] | loss |", "|---|---|---|---|"]
    for name, row in report["own_task"].items():
        lines.append(f"| {name} | {100 * row['accuracy']:.2f} | {_interval(row['difference'])} | {row['loss']:.4f} |")
    curve = " → ".join(f"{100 * value:.1f}" for value in report["forgetting_accuracy"])
    lines += ["", f"Forgetting curve ({metric} of Θ_0 and of each state of the trajectory, %): {curve}", ""]
    lines += [_hypermodel_line(report), ""]
    if sample := report["inputs"].get("sample"):
        # JSON, so that no line of a stranger's text can end the block
        shown = [json.dumps(example, ensure_ascii=False) for example in sample]
        lines += ["## Some of the training examples, as they were read", "", "```json", *shown, "```", ""]
    lines += ["## Notes", "", *(f"- {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def _hypermodel_line(report: dict[str, Any]) -> str:
    counts = ", ".join(f"{kind} {int(np.int64(count)):,}" for kind, count in report["weights_predicted"].items())
    return f"Hyper-model {report['hypermodel']['name']}; weights predicted: {counts}."


def _interval(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value['mean']:+.2f} [{100 * value['low']:+.2f}, {100 * value['high']:+.2f}]"
