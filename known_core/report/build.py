"""The before/after report as data. It holds no times and no paths: the same run gives the same bytes."""

from typing import TYPE_CHECKING, Any

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
    losses: list[dict[str, Any]],
    weight_changes: dict[str, Any],
    plane: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything the job found.

    Args:
        inputs: what was understood of model and data.
        hypermodel: its name, sha256 and design.
        weights_predicted: weights by kind, and those carried over.
        forgetting_accuracy: D_0's own task at Θ_0 and at each state of the trajectory, most data first.
        forgetting_examples: how many examples each of these was trained on.
        scores: per-example results on D_0's own task, for ``unchanged`` and every candidate.
        probes: downstream accuracy over seeds, likewise.
        losses: of each training: ``name`` ("state 1" and on, or the control that it is for), ``examples``, and
            ``curve``, pairs of a step and the mean loss since the pair before.
        weight_changes: of one ``candidate``, as :func:`~known_core.changes.weight_changes` gives them.
        plane: of the trajectory, a :class:`~known_core.plane.Plane` with its ``surface`` (None where it was not
            measured, see :func:`~known_core.landscape.loss_surface`); None where the states span none.
    """
    gains = compare({name: probe.accuracy for name, probe in probes.items()})
    selected = select(gains, spec.evaluation.select)
    before = scores[UNCHANGED]
    return _with_figures(
        {
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
                    "difference": paired_interval(score.correct, before.correct).as_dict()
                    if name != UNCHANGED
                    else None,
                }
                for name, score in scores.items()
            },
            "forgetting_accuracy": forgetting_accuracy,
            "forgetting_examples": forgetting_examples,
            "losses": losses,
            "weight_changes": weight_changes,
            "plane": plane,
            "notes": [
                *_notes(inputs, len(gains), spec.evaluation.seeds, float(before.correct.mean())),
                *_harm(forgetting_accuracy, forgetting_examples),
                *_of_the_plane(spec, plane),
            ],
        }
    )


def _with_figures(report: dict[str, Any]) -> dict[str, Any]:
    """The report with a list of the figures that it has the data for."""
    from known_core.figures import figures_of  # here, so that who only inspects a job does not load matplotlib

    return report | {"figures": figures_of(report)}


def _of_the_plane(spec: JobSpec, plane: dict[str, Any] | None) -> list[str]:
    if plane is None:
        return ["The states do not differ enough to span a plane: there is no figure of it."]
    if spec.evaluation.landscape.points and plane["surface"] is None:
        return ["The loss over the plane is missing: memory ran out with a single example at once."]
    return []


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


def delivered_of_trajectory(spec: JobSpec, names: list[str]) -> str:
    """What a job without data delivers, of the candidates that it makes: nothing was measured to choose by."""
    return names[0] if spec.evaluation.select == "best" else spec.evaluation.select


def describe_trajectory(
    spec: JobSpec,
    *,
    inputs: dict[str, Any],
    hypermodel: dict[str, str],
    weights_predicted: dict[str, int],
    names: list[str],
    weight_changes: dict[str, Any],
    plane: dict[str, Any] | None,
) -> dict[str, Any]:
    """The report of a job without data: what was predicted, and that nothing was measured.

    Args:
        names: every candidate, the smallest step first.
        weight_changes, plane: as for :func:`build_report`; the plane has no surface.
    """
    selected = delivered_of_trajectory(spec, names)
    return _with_figures(
        {
            "conclusion": f"Nothing was measured: the job had five states and no data. {selected} is delivered"
            + (", the smallest step back." if spec.evaluation.select == "best" else ", as you asked."),
            "selected": selected,
            "task": None,
            "library": None,
            "sources": inputs["sources"],
            "inputs": inputs,
            "hypermodel": hypermodel,
            "weights_predicted": weights_predicted,
            "settings": spec.model_dump(mode="json", include={"nowcast", "output"}) | {"rate": spec.forgetting.rate},
            "weight_changes": weight_changes,
            "plane": plane,
            "notes": [
                f"{hypermodel['name']} read the states as a {hypermodel['design']}, the most recent first.",
                "Batch-normalisation statistics are those of the most recent state: re-estimate them before use.",
                "Whether the predictions are better to fine-tune from, only a comparison on your data can say.",
            ],
        }
    )
