"""The report as Markdown."""

import json
from typing import Any

from known_core.points import points


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the words first, then the figures."""
    if "transfer" not in report:
        lines = ["# Prediction from a trajectory", "", report["conclusion"], "", _hypermodel_line(report), ""]
        return "\n".join([*lines, "## Notes", "", *(f"- {note}" for note in report["notes"])]) + "\n"
    metric = report["metric"]
    lines = ["# Before and after", "", report["conclusion"], "", f"## Transfer probe (downstream {metric}, %)", ""]
    lines += ["| candidate | mean | gain over unchanged, points [95%] | learning rate |", "|---|---|---|---|"]
    for name, row in report["transfer"].items():
        lines.append(f"| {name} | {100 * row['mean']:.2f} | {points(row['gain'])} | {row['learning_rate']:g} |")
    lines += ["", f"## D_0's own task ({metric} as predicted, %)", ""]
    lines += [f"| candidate | {metric} | difference, points [95%] | loss |", "|---|---|---|---|"]
    for name, row in report["own_task"].items():
        lines.append(f"| {name} | {100 * row['accuracy']:.2f} | {points(row['difference'])} | {row['loss']:.4f} |")
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
    counts = ", ".join(f"{kind} {count:,}" for kind, count in report["weights_predicted"].items())
    return f"Hyper-model {report['hypermodel']['name']}; weights predicted: {counts}."
