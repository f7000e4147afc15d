"""`known report`: the numbers of the report, drawn in text."""

import json
from pathlib import Path

import pytest

from known_core.files import write_json
from known_core.report.html import render_html
from known_core.terminal_report import interval_bar, sparkline
from tests.artifacts import sample_report
from tests.known_core.conftest import Run


def test_a_sparkline_has_the_shape_of_its_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(80)), 0, 79, width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0], 1.0, 1.0) == "▅▅"
    assert sparkline([], 0, 1) == ""
    assert sparkline([-5, 50], 0, 7) == "▁█"


@pytest.mark.parametrize(
    ("low", "mean", "high", "drawn"),
    [
        (1, 3, 5, "  │├─●─┤  "),
        (-1, 1, 3, " ├┼●─┤    "),
        (-2, -2, -2, "● │       "),
        (0, 0, 0, "  ●       "),
    ],
)
def test_an_interval_lies_where_its_numbers_do(low: float, mean: float, high: float, drawn: str) -> None:
    assert interval_bar({"low": low, "mean": mean, "high": high}, -2, 7, width=10) == drawn


def test_the_command_draws_saves_and_prints(run: Run, tmp_path: Path) -> None:
    report = sample_report()
    write_json(tmp_path / "report.json", report)
    status, out, said = run("report", tmp_path / "report.json")
    assert status == 0, said
    for words in (report["conclusion"], *report["notes"], "swa *", "loss, state 4", "├", "▇"):
        assert words in out
    for name, row in report["transfer"].items():
        assert f"{100 * row['mean']:.2f}" in out, name
        if row["gain"]:
            assert f"{100 * row['gain']['mean']:+.2f} [{100 * row['gain']['low']:+.2f}" in out
    status, out, said = run("report", tmp_path / "report.json", "--html", tmp_path / "page.html")
    assert (status, out) == (0, "")
    assert (tmp_path / "page.html").read_text() == render_html(report)
    status, out, _ = run("report", tmp_path / "report.json", "--json")
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())


def test_a_trajectory_without_data_is_drawn(run: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"conclusion": "Nothing was measured.", "notes": ["a [b]note[/b]"]})
    status, out, _ = run("report", tmp_path / "report.json")
    assert (status, out) == (0, "Nothing was measured.\n- a [b]note[/b]\n")


def test_what_is_no_report(run: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "other.json", {"a": 1})
    status, _, said = run("report", tmp_path / "other.json")
    assert status == 1
    assert "file_invalid" in said
    status, _, said = run("report", tmp_path / "none.json")
    assert (status, "file_invalid" in said) == (1, True)
