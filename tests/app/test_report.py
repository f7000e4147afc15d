"""The report over HTTP: as data, as a page, and figure by figure."""

import hashlib
import html
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from app.artifacts.files import wanted
from known_core.client import Client
from known_core.figures import render_svg
from known_core.stack import Stack


@pytest.fixture
def report(stack: Stack, finished_job: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/report").json()
    return found


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("text/html", "html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),  # a browser
        ("application/json, text/html;q=0.9", "json"),
        ("text/html;q=0", "json"),
        ("text/html;q=x", "json"),
        ("TEXT/HTML ; q=0.5 , application/json;q=0.4", "html"),
    ],
)
def test_accept_says_what_is_wanted(accept: str, expected: str) -> None:
    assert wanted(accept) == expected


def test_the_report_is_data_or_a_page(stack: Stack, client: Client, finished_job: str, report: dict[str, Any]) -> None:
    url = f"{stack.url}/v1/jobs/{finished_job}/report"
    page = httpx.get(url, headers={"Accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert report["conclusion"] in html.unescape(page.text)
    assert page.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["vary"] == "Accept"
    assert page.headers["etag"] == f'"{hashlib.sha256(page.content).hexdigest()}"'
    assert httpx.get(url, params={"format": "html"}).content == page.content
    assert httpx.get(url, params={"format": "json"}, headers={"Accept": "text/html"}).json() == report
    again = httpx.get(url, params={"format": "html"}, headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    wrong = httpx.get(url, params={"format": "pdf"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "request_invalid")


def test_figures_are_listed_and_drawn(stack: Stack, finished_job: str, report: dict[str, Any]) -> None:
    listed = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/figures").json()["data"]
    assert [{name: figure[name] for name in report["figures"][0]} for figure in listed] == report["figures"]
    assert len(listed) == 5
    for figure in listed:
        answer = httpx.get(stack.url + figure["url"], timeout=60)
        assert answer.text == render_svg(report, figure["name"])
        assert ElementTree.fromstring(answer.text).tag.endswith("svg")
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
        again = httpx.get(stack.url + figure["url"], headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert httpx.get(stack.url + figure["download_url"], timeout=60).content == answer.content


@pytest.mark.parametrize("content", [b"", b"[1", b'{"figures": [{}]}', None])
def test_a_damaged_report_is_said(stack: Stack, finished_job: str, content: bytes | None) -> None:
    [path] = (stack.logs.parent / "jobs" / finished_job).rglob("artifacts/report.json")
    whole = path.read_bytes()
    try:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        for route in ("report", "figures", "figures/else.svg"):
            answer = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/{route}")
            assert (answer.status_code, answer.json()["code"]) == (503, "result_damaged")
        assert "result_damaged" in httpx.get(f"{stack.url}/jobs/{finished_job}").text
    finally:
        path.write_bytes(whole)
    assert httpx.get(f"{stack.url}/v1/jobs/{finished_job}/figures").status_code == 200


def test_a_signed_address_of_a_figure_opens_that_figure(stack: Stack, finished_job: str) -> None:
    first, second = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/figures").json()["data"][:2]
    query = first["download_url"].partition("?")[2]
    for path in (second["url"], f"/v1/jobs/{finished_job}/artifacts/report.json"):
        answer = httpx.get(f"{stack.url}{path}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (403, "url_invalid")


@pytest.mark.parametrize("name", ["else", "..%2freport", "before_after.svg", "BEFORE_AFTER"])
def test_figures_that_are_not_there(stack: Stack, finished_job: str, name: str) -> None:
    answer = httpx.get(f"{stack.url}/v1/jobs/{finished_job}/figures/{name}.svg")
    assert answer.status_code == 404
    assert answer.json()["code"] in ("figure_not_found", "not_found")
    assert httpx.get(f"{stack.url}/v1/jobs/job_{'0' * 24}/figures/losses.svg").json()["code"] == "job_not_found"
