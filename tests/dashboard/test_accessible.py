"""Every page, wide and on a telephone, light and dark: axe finds nothing against WCAG 2.2 AA, nothing scrolls across.

By default list, form and job pages in one theme at each width; crossed, and the other pages, in the slow tests.
"""

import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from known_core.stack import Stack
from tests.conftest import Inputs
from tests.dashboard.watching import log_in, see_figures, visiting

pytestmark = pytest.mark.browser
Theme = Literal["light", "dark"]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


class Look(NamedTuple):
    """A theme at each width."""

    wide: Theme
    telephone: Theme


@pytest.fixture(params=[Look("light", "dark"), pytest.param(Look("dark", "light"), marks=pytest.mark.slow)], ids=str)
def look(request: pytest.FixtureRequest) -> Look:
    chosen: Look = request.param
    return chosen


@pytest.fixture
def lab(browser: Browser, guarded: Stack, standing: dict[str, str]) -> Iterator[BrowserContext]:
    with visiting(browser, guarded.url, reduced_motion="reduce") as context:
        log_in(context, standing["key"])
        yield context


def check(page: Page, look: Look) -> None:
    """By axe at both widths, and that nothing is wider than the smallest telephone (WCAG 2.2, 1.4.10)."""
    for width, theme in ((390, look.telephone), (1280, look.wide)):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=theme)
        found = Axe().run(page, options=RULES)
        assert found.violations_count == 0, f"{theme}, {width} px: {found.generate_report()}"
    page.set_viewport_size({"width": 320, "height": 800})
    scrolls = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(scrolls) <= 0, page.url
    page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize(
    "state", ["running", pytest.param("paused", marks=pytest.mark.slow), pytest.param("failed", marks=pytest.mark.slow)]
)
def test_a_job_in_each_state(lab: BrowserContext, standing: dict[str, str], state: str, look: Look) -> None:
    page = lab.new_page()
    page.goto(f"/jobs/{standing[state]}")
    expect(page.locator(".badge")).to_have_text(state)
    for details in page.locator("details").all():
        details.locator("summary").first.click()
    if state == "running":
        expect(page.locator("#loss canvas").first).to_be_visible()
        expect(page.locator("#loss-key li")).to_have_count(3)
        expect(page.locator("#forgetting canvas")).to_be_visible()
    if state == "failed":
        expect(page.get_by_role("alert")).to_contain_text("out_of_memory")
        expect(page.get_by_role("region", name="Webhook deliveries").first).to_contain_text(
            "http://127.0.0.1:9999/hook"
        )
    check(page, look)


def test_the_list_and_an_empty_one(lab: BrowserContext, standing: dict[str, str], look: Look) -> None:
    page = lab.new_page()
    page.goto("/")
    expect(page.locator(f"#row-{standing['running']} progress")).to_be_visible()
    check(page, look)
    page.goto("/?status=validating")
    check(page, look)


@pytest.mark.slow
def test_the_login_and_what_is_not_there(browser: Browser, lab: BrowserContext, guarded: Stack, look: Look) -> None:
    page = lab.new_page()
    page.goto(f"/jobs/job_{'0' * 24}")
    expect(page.get_by_role("alert")).to_contain_text("job_not_found")
    check(page, look)
    with visiting(browser, guarded.url) as stranger:
        page = stranger.new_page()
        page.goto("/")
        check(page, look)


def test_the_form_its_errors_and_its_answer(lab: BrowserContext, inputs: Inputs, look: Look) -> None:
    page = lab.new_page()
    page.goto("/jobs/new")
    for pointer in ("/model", "/dataset"):
        page.locator(f'[data-source="{pointer}"] > .choices input[value=hub]').check()
    for details in page.locator(".settings > details").all():
        details.locator("summary").first.click()
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.locator(".wrong").first).to_be_visible()
    check(page, look)
    page.locator('[data-source="/model"] > .choices input[value=upload]').check()
    page.locator("#s-model-file").set_input_files(inputs.model)
    page.get_by_label("Config of a bare state dict").fill(json.dumps(inputs.config))
    page.locator('[data-source="/dataset"] > .choices input[value=upload]').check()
    page.locator("#s-dataset-file").set_input_files(inputs.dataset)
    expect(page.locator("output", has_text="complete")).to_have_count(2)
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.get_by_role("button", name="Start the job")).to_be_visible()
    check(page, look)


def test_a_finished_job_and_its_question(browser: Browser, stack: Stack, finished_job: str, look: Look) -> None:
    with visiting(browser, stack.url, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(f"/jobs/{finished_job}")
        expect(page.locator("#forgetting canvas")).to_be_visible()
        see_figures(page)
        check(page, look)
        page.get_by_role("button", name="Republish").click()
        check(page, look)


def test_nothing_moves_for_those_who_ask_for_it(lab: BrowserContext, standing: dict[str, str]) -> None:
    page = lab.new_page()
    page.goto(f"/jobs/{standing['running']}")
    moving = "getComputedStyle(document.querySelector('.badge'), '::before').animationName"
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "breathe"
