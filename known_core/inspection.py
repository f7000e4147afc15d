"""What a job will make, and whether its inputs allow it: known before anything is unpacked or trained."""

from pathlib import Path
from typing import Any, Literal

from known_core.errors import KnownError
from known_core.forgetting import Design
from known_core.hypermodels import hypermodel_path
from known_core.inputs import Sources, inspect_inputs, open_sources
from known_core.spec import Control, JobSpec, candidate_names

Trajectory = Design | Literal["swa"]
TRAINED_FOR: dict[Control, Trajectory] = {"continued": "fan", "swa": "swa"}  # controls with a training of their own
_READS_TRAJECTORIES = "known-paper"  # states that a user brings are a chain, as the paper's


def inspect(spec: JobSpec, sources: Sources | None = None) -> dict[str, Any]:
    """Check a job's inputs without unpacking them; what was understood of them.

    Args:
        sources: the inputs by name, where they are not at the paths of the spec (yet).

    Raises:
        KnownError: the first thing that makes the job impossible, pointing at the request's field.
    """
    hypermodel_of(spec)
    names = candidates_of(spec)
    if spec.evaluation.select not in ("best", *names):
        raise KnownError(
            "candidate_unknown",
            f"select is {spec.evaluation.select!r}; this job makes {names}",
            'Name one of them, or "best".',
        ).at("/evaluation/select")
    return inspect_inputs(spec, open_sources(spec) if sources is None else sources)


def candidates_of(spec: JobSpec) -> list[str]:
    """Every candidate a job makes, besides the weights given."""
    return [*candidate_names(spec.forgetting.rate, spec.nowcast.recurrences), *controls_of(spec)]


def controls_of(spec: JobSpec) -> list[Control]:
    """The controls of a job; states that a user brings allow only those without a training of their own."""
    return [
        control for control in dict.fromkeys(spec.nowcast.controls) if not spec.trajectory or control not in TRAINED_FOR
    ]


def hypermodel_of(spec: JobSpec) -> Path:
    """The file of the hyper-model that a job runs with here.

    Raises:
        KnownError: ``hypermodel_unknown``.
    """
    return hypermodel_path(spec.nowcast.hypermodel or (_READS_TRAJECTORIES if spec.trajectory else None))
