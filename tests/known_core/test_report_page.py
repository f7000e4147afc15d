"""The report as a page: complete, readable without anything else, and deaf to strangers' words."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from known_core.comparison import UNCHANGED
from known_core.report.html import render_html
from tests.artifacts import SOURCES, sample_report

HOSTILE = "</title></style><script>alert(1)</script><img src=http://e/x onerror=alert(1)>\x00\u202e\"' {{ 7*7 }}"
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """A page's elements, checked for nesting; fails where one is left open."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_has_everything_and_says_the_result_first() -> None:
    report = sample_report()
    html = render_html(report)
    page = Page(html)
    assert html == render_html(sample_report())
    assert page.text.index(report["conclusion"]) < page.text.index("candidate")
    for name, row in report["transfer"].items():
        assert f"{100 * row['mean']:.1f} %" in page.text
        if name != UNCHANGED:
            assert f"[{100 * row['gain']['low']:+.2f}, {100 * row['gain']['high']:+.2f}]" in page.text
    for words in (
        *report["notes"], "a" * 40, "b" * 40, "1" * 64, "alice/base", report["hypermodel"]["sha256"], "conv 1,200",
        "known reproduce manifest.json", "forgetting.rate", '"label": "cat"',
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("svg")) == len(report["figures"])
    for figure in report["figures"]:
        assert figure["caption"] in page.text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    html = render_html(sample_report())
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "foreignobject"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "xlink:href")]
        assert str(attributes.get("href", "#")).startswith("#")
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")


def test_the_page_is_accessible_in_its_structure() -> None:
    page = Page(render_html(sample_report()))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(heading.get("scope") in ("row", "col") for heading in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set(str(attributes.get("aria-labelledby") or "").split()) <= set(map(str, ids))


def test_the_page_says_plainly_when_nothing_was_gained() -> None:
    page = Page(render_html(sample_report({"x2": 0.0, "x4": -0.02})))
    assert "Nothing was gained" in page.text
    assert "What you get are the weights that you gave" in page.text
    assert ("p", {"class": "verdict unproven"}) in page.elements
    assert ("p", {"class": "verdict gained"}) in Page(render_html(sample_report())).elements


def trajectory() -> dict[str, Any]:
    whole = sample_report()
    kept = ("hypermodel", "weights_predicted", "inputs", "plane", "weight_changes", "sources")
    return {name: whole[name] for name in kept} | {
        "conclusion": "Nothing was measured.",
        "selected": "x2",
        "settings": {"nowcast": {"recurrences": 3}, "rate": 0.5},
        "notes": ["a note"],
    }


def test_a_trajectory_without_data_has_a_page_of_what_there_is() -> None:
    page = Page(render_html(trajectory()))
    assert "Nothing was measured." in page.text
    assert len(page.all("svg")) == 2
    assert "downstream" not in page.text.partition("What was done")[0]


def test_an_older_report_has_a_page() -> None:
    report = sample_report()
    for key in ("losses", "plane", "weight_changes", "figures"):
        del report[key]
    assert len(Page(render_html(report)).all("svg")) == 2


@pytest.mark.parametrize("hostile", [HOSTILE])
def test_strangers_words_stay_words(hostile: str) -> None:
    hub = {"repo_id": hostile, "config": hostile, "split": hostile, "revision": hostile}
    report = sample_report(sources={"model": {"hub": hub}, hostile: {"sha256": hostile}})
    report["inputs"] |= {"sample": [{hostile: hostile}]}
    report |= {"notes": [hostile], "conclusion": hostile, "metric": hostile}
    report["settings"]["forgetting"][hostile] = hostile
    report["hypermodel"] |= {"name": hostile}
    report["weights_predicted"] = {hostile: 1}
    for tensor in report["weight_changes"]["tensors"]:
        tensor["name"] = hostile
    html = render_html(report)
    page, clean = Page(html), Page(render_html(sample_report(sources=SOURCES)))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean.elements}
    assert "\x00" not in html
    assert "\u202e" not in html
    assert "{{ 7*7 }}" in page.text
    assert "<script>alert(1)</script>" in page.text
