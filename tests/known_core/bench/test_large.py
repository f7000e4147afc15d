"""The cost of large models on paper: its shapes are the models', its tables are the document's."""

from pathlib import Path

import pytest

from known_core.bench.large import GB, SHAPES, Constants, Job, cost, large_summary, table
from known_core.costs import training_bytes
from tests.known_core.conftest import Run

PAGE = (Path(__file__).parents[3] / "docs" / "large-models.md").read_text(encoding="utf-8")


def test_shapes_have_the_weights_of_their_models() -> None:
    found = {shape.name: shape.parameters / 1e9 for shape in SHAPES}
    expected = {"0.1 B": 0.124, "1 B": 1.10, "7 B": 6.74, "13 B": 13.0, "70 B": 69.0}  # as their authors count them
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("recurrences", [1, 3])
def test_the_document_has_what_the_command_prints(recurrences: int, run: Run) -> None:
    status, out, _ = run("bench", "large", "--recurrences", recurrences)
    assert status == 0
    assert out.strip() == large_summary(table(recurrences))
    assert out.strip() in PAGE


def test_what_is_chosen_follows_the_memory() -> None:
    sharding = {shape.name: cost(shape, gpus=8).sharding for shape in SHAPES}
    assert sharding == {"0.1 B": "ddp", "1 B": "ddp", "7 B": "fsdp", "13 B": "fsdp", "70 B": "fsdp"}
    large = SHAPES[-1]
    assert not cost(large, gpus=8).fits
    assert cost(large, gpus=8, known=Constants(gpu_bytes=200 * GB)).fits
    assert training_bytes(large.parameters, large.parameters) == 20 * large.parameters


def test_costs_grow_with_what_is_asked_for() -> None:
    for shape in SHAPES:
        few, many = (cost(shape, Job(recurrences=count)) for count in (1, 3))
        assert few.hours < many.hours
        assert few.disk_bytes == pytest.approx(28 * shape.parameters)
        assert many.disk_bytes == pytest.approx(32 * shape.parameters)
        assert cost(shape, gpus=8).seconds["forgetting"] < cost(shape, gpus=1).seconds["forgetting"] + 60
        assert cost(shape, gpus=1).network_bytes == 0
