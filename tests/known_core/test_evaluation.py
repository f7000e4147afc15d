"""Choice, words, draws, and the transfer probe on a real job's data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from known_core.checkpoint import Checkpoint
from known_core.comparison import UNCHANGED, ProbeResult, compare, comparison, conclusion, select
from known_core.evaluation import draw_examples, probe_runs, transfer_probe
from known_core.inputs import lay_out
from known_core.spec import EvaluationSettings, JobSpec
from known_core.statistics import Interval
from known_core.tasks import TASKS
from known_core.tasks.opened import OpenTask

GAIN, BIGGER = Interval(0.01, 0.005, 0.015, 3), Interval(0.02, 0.001, 0.039, 3)
NONE, LOSS = Interval(0.03, -0.01, 0.07, 3), Interval(-0.02, -0.03, -0.01, 3)


def test_the_best_proven_gain_is_selected() -> None:
    assert select({"x2": GAIN, "x4": BIGGER, "x8": NONE}) == "x4"
    assert select({"x2": GAIN, "x4": LOSS}) == "x2"


def test_without_proof_the_weights_stay_unchanged() -> None:
    assert select({"x2": NONE, "x4": LOSS}) == UNCHANGED
    assert select({"x2": Interval(0.1, 0.0, 0.2, 3)}) == UNCHANGED


def test_a_wish_is_granted() -> None:
    assert select({"x2": GAIN, "x4": LOSS}, "x4") == "x4"


@pytest.mark.parametrize(
    ("gains", "wish", "parts", "absent"),
    [
        ({"x2": GAIN, "x4": NONE}, "best", ["x2 changes", "+1.00 [+0.50, +1.50]", "a gain was shown"], "You asked"),
        (
            {"x2": NONE, "x4": LOSS},
            "best",
            ["Nothing was gained", "unchanged", "x2 with +3.00 [-1.00, +7.00]"],
            "a gain was",
        ),
        (
            {"x2": LOSS, "x4": GAIN},
            "x2",
            ["You asked for x2", "-2.00 [-3.00, -1.00]", "a loss was shown"],
            "a gain was",
        ),
        ({"x2": NONE}, "x2", ["You asked for x2", "no gain was shown"], "a loss"),
        ({"x2": GAIN}, "x2", ["You asked for x2", "a gain was shown"], "no gain"),
    ],
)
def test_the_conclusion_says_what_was_found(
    gains: dict[str, Interval], wish: str, parts: list[str], absent: str
) -> None:
    text = conclusion(gains, select(gains, wish), wish)
    for part in parts:
        assert part in text
    assert absent not in text


def test_gains_are_paired_by_seed() -> None:
    gains = compare({"x2": [0.5, 0.9, 0.7], UNCHANGED: [0.4, 0.8, 0.6], "x4": [0.4, 0.8, 0.6]})
    assert list(gains) == ["x2", "x4"]
    assert gains["x2"].mean == pytest.approx(0.1)
    assert gains["x2"].high - gains["x2"].low < 1e-9  # the spread between seeds cancels
    assert (gains["x4"].low, gains["x4"].high) == (0, 0)


def test_the_report_s_rows() -> None:
    results = {UNCHANGED: ProbeResult(0.1, {}, [0.5, 0.7]), "x2": ProbeResult(0.2, {"0.2": 0.9}, [0.6, 0.8])}
    rows = comparison(results, compare({name: result.accuracy for name, result in results.items()}))
    assert rows[UNCHANGED]["gain"] is None
    assert rows["x2"]["mean"] == pytest.approx(0.7)
    assert rows["x2"]["gain"]["mean"] == pytest.approx(0.1)
    assert rows["x2"]["validation"] == {"0.2": 0.9}


@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.integers(1, 100), st.integers(0, 1000))
def test_draws_are_balanced_disjoint_and_complete(counts: list[int], wanted: int, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts), dtype=np.int64), counts))
    chosen, rest = draw_examples(labels, wanted, seed)
    assert len(chosen) == min(wanted, len(labels) * 3 // 4)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(labels)))
    drawn = np.bincount(labels[chosen], minlength=len(counts))
    for count, other in zip(drawn, counts, strict=True):
        assert count == other or count >= drawn.max() - 1  # even, unless a class is used up
    again, _ = draw_examples(labels, wanted, seed)
    assert np.array_equal(chosen, again)


def test_draws_of_other_seeds_differ() -> None:
    labels = np.arange(200, dtype=np.int64) % 4
    assert len({tuple(sorted(draw_examples(labels, 20, seed)[0].tolist())) for seed in range(10)}) == 10


def test_probe_runs() -> None:
    assert probe_runs(EvaluationSettings(seeds=4, probe_learning_rates=(0.1,))) == 4
    assert probe_runs(EvaluationSettings(seeds=4, probe_learning_rates=(0.1, 0.2))) == 6


def test_the_probe_treats_every_candidate_alike(tiny_spec: JobSpec, tmp_path: Path) -> None:
    """The same weights twice give the same figures, so differences are the candidates' own."""
    lay_out(tiny_spec, tmp_path / "inputs")
    opened = OpenTask(TASKS["image-classification"], tiny_spec, tmp_path / "inputs", tmp_path / "cache")
    checkpoint = Checkpoint(tmp_path / "inputs" / "model")
    settings = EvaluationSettings(seeds=3, probe_examples=30, probe_epochs=2, probe_learning_rates=(1e-6, 1e-2))
    calls: list[None] = []
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        results.append(transfer_probe(opened, checkpoint, settings, 7, torch.device("cpu"), lambda: calls.append(None)))
    assert results[0] == results[1]
    assert len(calls) == 2 * probe_runs(settings)
    first = results[0]
    assert set(first.validation) == {"1e-06", "0.01"}
    assert first.validation[f"{first.learning_rate:g}"] == max(first.validation.values())
    assert first.learning_rate == 1e-2  # a millionth learns nothing
    assert len(set(first.accuracy)) > 1
    other = transfer_probe(opened, checkpoint, settings.model_copy(update={"seeds": 4}), 7, torch.device("cpu"))
    assert other.accuracy[:3] == first.accuracy  # seed k is seed k, however many there are
