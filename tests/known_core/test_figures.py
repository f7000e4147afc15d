"""The figures show the report's own numbers, the same each time, and nothing of a stranger's but words."""

import copy
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageColor

from known_core.errors import KnownError
from known_core.figures import figures_of, plot, render_svg
from known_core.figures.style import PALETTE, WIDTH, spread
from tests.artifacts import sample_report

NAMES = ["before_after", "landscape", "forgetting", "weight_changes", "losses"]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script>\"'&\x00\u202e$\\frac{x}$ <style>*{}</style>"


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def described(svg: str) -> str:
    return ElementTree.fromstring(svg).findtext(f"{SVG}desc") or ""


def test_a_report_has_all_figures_and_lists_them() -> None:
    report = sample_report()
    assert [figure["name"] for figure in report["figures"]] == NAMES
    assert report["figures"] == figures_of(report)
    assert all(all(figure.values()) for figure in report["figures"])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_report_gives_the_same_bytes(name: str) -> None:
    report = sample_report()
    first = render_svg(report, name)
    assert render_svg(copy.deepcopy(report), name) == first
    assert not re.search(r"\b20\d\d-\d\d-\d\d", first)
    assert len(first) < 100_000


def _gain(report: dict[str, Any]) -> str:
    report["transfer"]["x4"]["gain"] |= {"mean": 0.1234, "low": 0.1111, "high": 0.1357}
    return "+12.34"


def _loss(report: dict[str, Any]) -> str:
    report["plane"]["surface"]["at"]["x4"] = 9.87
    report["plane"]["surface"]["loss"][0][0] = 5.0
    return "9.87"


def _accuracy(report: dict[str, Any]) -> str:
    report["own_task"]["x4"]["accuracy"] = 0.919
    return "91.9"


def _change(report: dict[str, Any]) -> str:
    report["weight_changes"]["tensors"][0]["change"] = 0.4321
    return "43.2 %"


def _curve(report: dict[str, Any]) -> str:
    stage = report["losses"][0]
    stage["curve"] = [(step, loss + 7) for step, loss in stage["curve"]]
    return "8.1"


@pytest.mark.parametrize(("name", "change"), list(zip(NAMES, (_gain, _loss, _accuracy, _change, _curve), strict=True)))
def test_a_figure_changes_with_its_numbers(name: str, change: Callable[[dict[str, Any]], str]) -> None:
    report = sample_report()
    before = render_svg(report, name)
    said = change(report)
    after = render_svg(report, name)
    assert said in described(after)
    assert said not in described(before)
    drawn = [re.sub(r"(?s)<desc.*?</desc>", "", svg) for svg in (before, after)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_carries_nothing_but_itself(name: str) -> None:
    svg = render_svg(sample_report(), name)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert str(root.get("aria-labelledby")).split() == ids[:2]
    assert all(str(identity).startswith(name) for identity in ids)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "g", "path", "text", "use", "defs", "clipPath", "rect"}
    for element in root.iter():
        assert "style" not in element.attrib  # a strict policy would take it away
        assert not [key for key in element.attrib if key.startswith("on")]
        href = element.get("href")
        assert href is None or href.removeprefix("#") in ids
    assert "#" not in re.sub(r'(?s)<style>.*?</style>|url\(#|href="#', "", svg)  # colours are the page's
    assert "<style>" not in render_svg(sample_report(), name, standalone=False)
    assert "prefers-color-scheme:dark" in svg


@pytest.mark.parametrize("name", NAMES)
def test_words_stay_inside(name: str) -> None:
    """By matplotlib's own font, which is wider than what a page takes."""
    (figure,) = plot(sample_report(), name)
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text.axes is None:
            box = text.get_window_extent()
            assert box.x0 >= -1, text.get_text()
            assert box.x1 <= width + 1, text.get_text()
            assert -1 <= box.y0 <= box.y1 <= height + 1, text.get_text()


def test_strangers_words_stay_words() -> None:
    report = sample_report()
    report["metric"] = HOSTILE
    for stage in report["losses"]:
        stage["name"] = f"state {HOSTILE}"
    for tensor in report["weight_changes"]["tensors"]:
        tensor["name"] = HOSTILE
    report["transfer"][HOSTILE] = report["transfer"].pop("x4")
    report["own_task"][HOSTILE] = report["own_task"].pop("x4")
    report["plane"]["points"][HOSTILE] = report["plane"]["points"].pop("x4")
    clean = sample_report()
    for name in NAMES:
        svg = render_svg(report, name)
        tags = {element.tag for element in ElementTree.fromstring(svg).iter()}
        assert tags <= {element.tag for element in ElementTree.fromstring(render_svg(clean, name)).iter()}
        assert "\x00" not in svg
        assert "\u202e" not in svg
        assert "<style>*{}</style>" in described(svg) or "script>alert" in described(svg)


@pytest.mark.parametrize("name", ["nothing", "../x", "", "a" * 200, "Losses"])
def test_a_figure_that_is_not_there(name: str) -> None:
    with pytest.raises(KnownError, match=r"before_after, landscape.*|figure_not_found") as caught:
        render_svg(sample_report(), name)
    assert caught.value.code == "figure_not_found"


def test_what_is_not_known_is_not_drawn() -> None:
    report = sample_report()
    for key in ("losses", "plane", "weight_changes", "transfer", "own_task", "forgetting_accuracy"):
        del report[key]
    assert figures_of(report) == []
    with pytest.raises(KnownError, match="It has: none"):
        render_svg(report, "losses")


def test_a_plane_without_loss_and_with_holes_is_drawn() -> None:
    report = sample_report()
    whole = render_svg(report, "landscape")
    report["plane"]["surface"]["loss"][0] = [None] * 8  # where it was not finite
    report["plane"]["surface"]["at"]["x8"] = None
    assert render_svg(report, "landscape") != whole
    report["plane"]["surface"]["loss"] = [[0.5] * 8] * 8
    assert "held-out" in described(render_svg(report, "landscape"))
    report["plane"]["surface"] = None
    assert "loss" not in described(render_svg(report, "landscape"))
    report["hypermodel"]["design"] = "chain"
    assert render_svg(report, "landscape")


def test_what_lies_where_a_state_does_shares_its_label() -> None:
    report = sample_report()
    points = report["plane"]["points"]
    points["continued"] = dict(points["state 1"])
    words = texts(render_svg(report, "landscape"))
    assert "1 = continued" in words
    assert not {"1", "continued"} & set(words)


def test_accuracies_end_at_all() -> None:
    report = sample_report()
    report["forgetting_accuracy"] = [1.0, 1.0, 0.99, 0.98, 0.98]
    for row in report["own_task"].values():
        row["accuracy"] = 1.0
    (figure,) = plot(report, "forgetting")
    assert figure.axes[0].get_ylim()[1] == 100


def test_a_deep_network_is_drawn_in_runs_of_layers() -> None:
    report = sample_report()
    tensors = report["weight_changes"]["tensors"]
    report["weight_changes"]["tensors"] = [
        {**tensor, "name": f"block.{index}.{tensor['name']}"} for index in range(40) for tensor in tensors
    ]
    svg = render_svg(report, "weight_changes")
    assert len([words for words in texts(svg) if re.search(r"\+\d+$", words)]) == 20
    assert len(svg) < 120_000


def test_a_tensor_that_was_zero_is_left_out_and_one_that_leaps_hides_no_other() -> None:
    report = sample_report()
    first, second = report["weight_changes"]["tensors"][:2]
    first |= {"change": None, "quantiles": None, "histogram": None}
    before = [tick for tick in texts(render_svg(report, "weight_changes")) if re.fullmatch(r"[−\d]+", tick)]
    second["quantiles"] = {share: 1000 * value for share, value in second["quantiles"].items()}
    second["histogram"] |= {"low": -100.0, "high": 100.0}
    second["change"] = 41.0
    words = texts(render_svg(report, "weight_changes"))
    assert first["name"] not in words
    assert "x41" in words
    assert max(int(tick) for tick in words if tick.isdigit()) < 10 * max(int(t) for t in before if t.isdigit())


def test_plot_gives_matplotlib_figures_that_a_notebook_shows() -> None:
    report = sample_report()
    figures = plot(report)
    assert len(figures) == len(NAMES)
    assert all(isinstance(figure, Figure) for figure in figures)
    assert figures._repr_html_().count("<svg") == len(NAMES)
    assert [len(plot(report, names)) for names in ("losses", ["losses", "landscape"], [])] == [1, 2, 0]
    with pytest.raises(KnownError, match="figure_not_found"):
        plot(report, "else")


def luminance(colour: str) -> float:
    channels = np.array(ImageColor.getrgb(colour)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1])
def test_every_colour_of_words_has_contrast(theme: int) -> None:
    """WCAG 2.2, 1.4.3."""
    page = luminance(PALETTE["paper"][theme])
    for role in PALETTE.keys() - {"paper", "grid"}:
        own = luminance(PALETTE[role][theme])
        assert (max(own, page) + 0.05) / (min(own, page) + 0.05) >= 4.5, role


def test_labels_spread_without_changing_their_order() -> None:
    assert spread([5.0, 50.0], 10, 0, 100) == [5.0, 50.0]
    assert spread([50.0, 51.0, 52.0], 10, 0, 100) == [41.0, 51.0, 61.0]
    found = spread([99.0, 98.0, 97.0, 3.0], 10, 0, 100)
    assert found == [100.0, 90.0, 80.0, 3.0]
    wanted = np.random.default_rng(0).uniform(0, WIDTH, 12).tolist()
    placed = np.array(spread(wanted, 12, 0, WIDTH))
    assert np.diff(placed[np.argsort(wanted)]).min() >= 12 - 1e-6
