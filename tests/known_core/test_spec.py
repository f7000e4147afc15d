"""The bounds of a request, and the names of candidates."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from known_core.spec import (
    Control,
    EvaluationSettings,
    ForgettingSettings,
    JobSpec,
    NowcastSettings,
    Settings,
    candidate_names,
)

SECTIONS: dict[str, type[Settings]] = {
    "forgetting": ForgettingSettings,
    "nowcast": NowcastSettings,
    "evaluation": EvaluationSettings,
}


@pytest.mark.parametrize(("section", "field", "value"), [
    ("forgetting", "learning_rate", 1e30), ("forgetting", "learning_rate", float("nan")),
    ("forgetting", "learning_rate", 0), ("forgetting", "learning_rate", -1e-3),
    ("forgetting", "epochs_per_stage", 10**9), ("forgetting", "epochs_per_stage", 0),
    ("forgetting", "batch_size", -1), ("forgetting", "batch_size", 0), ("forgetting", "batch_size", 1.5),
    ("forgetting", "rate", 1.0), ("forgetting", "rate", 0.0), ("forgetting", "rate", float("inf")),
    ("forgetting", "states", 4), ("forgetting", "seed", -1), ("forgetting", "seed", 2**32),
    ("forgetting", "unknown", 1), ("nowcast", "recurrences", 0), ("nowcast", "recurrences", 5),
    ("nowcast", "controls", ["x2"]), ("nowcast", "controls", "mean"), ("nowcast", "controls", ["mean", 1]),
    ("evaluation", "seeds", 2), ("evaluation", "seeds", 51), ("evaluation", "holdout", 0.9),
    ("evaluation", "probe_learning_rates", []), ("evaluation", "probe_learning_rates", [1e30]),
    ("evaluation", "probe_learning_rates", [0.1] * 6), ("evaluation", "select", "Worst"), ("evaluation", "select", ""),
    ("evaluation", "select", "x2\n"), ("evaluation", "select", "../x2"), ("evaluation", "probe_examples", 0),
])  # fmt: skip
def test_out_of_bounds(section: str, field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SECTIONS[section].model_validate({field: value})
    assert all(error["loc"][0] == field for error in caught.value.errors())


def test_defaults_and_immutability() -> None:
    spec = JobSpec(model=Path("m"), dataset=Path("d"))
    assert (spec.forgetting.rate, spec.forgetting.states, spec.nowcast.recurrences) == (0.5, 5, 3)
    assert spec.nowcast.controls == ("continued", "swa")
    with pytest.raises(ValidationError):
        spec.forgetting.rate = 0.3  # type: ignore[misc]
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_names_of_candidates() -> None:
    assert candidate_names(0.5, 4) == ["x2", "x4", "x8", "x16"]
    assert candidate_names(0.7, 2) == ["x1.43", "x2.04"]
    assert candidate_names(0.10000000000000002, 4) == ["x10", "x100", "x1000", "x10000"]


@given(st.floats(0.1, 0.95), st.integers(1, 4))
def test_every_candidate_can_be_asked_for(rate: float, recurrences: int) -> None:
    names = candidate_names(rate, recurrences)
    assert len(set(names)) == recurrences
    for name in names:
        assert re.fullmatch(r"x[0-9.]+", name)
        EvaluationSettings(select=name)
    for control in get_args(Control):
        EvaluationSettings(select=control)
