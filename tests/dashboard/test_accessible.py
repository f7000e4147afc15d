"""Every page in both themes: axe finds nothing against WCAG 2.2 AA, and a telephone's width needs no scrolling."""

import json
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from known_core.stack import Stack
from tests.conftest import Inputs
from tests.dashboard.watching import log_in, visiting

pytestmark = pytest.mark.browser
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lab(browser: Browser, guarded: Stack, standing: dict[str, str], theme: str) -> Iterator[BrowserContext]:
    with visiting(browser, guarded.url, color_scheme=theme, reduced_motion="reduce") as context:
        log_in(context, standing["key"])
        yield context


def check(page: Page) -> None:
    """By axe, and that nothing is wider than a telephone."""
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 375, "height": 800})
    scrolls = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(scrolls) <= 0, page.url
    page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.parametrize("state", ["running", "paused", "failed"])
def test_a_job_in_each_state(lab: BrowserContext, standing: dict[str, str], state: str) -> None:
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
    check(page)


def test_the_list_and_an_empty_one(lab: BrowserContext, standing: dict[str, str]) -> None:
    page = lab.new_page()
    page.goto("/")
    expect(page.locator(f"#row-{standing['running']} progress")).to_be_visible()
    check(page)
    page.goto("/?status=validating")
    check(page)


def test_the_login_and_what_is_not_there(browser: Browser, lab: BrowserContext, guarded: Stack, theme: str) -> None:
    page = lab.new_page()
    page.goto(f"/jobs/job_{'0' * 24}")
    expect(page.get_by_role("alert")).to_contain_text("job_not_found")
    check(page)
    with visiting(browser, guarded.url, color_scheme=theme) as stranger:
        page = stranger.new_page()
        page.goto("/")
        check(page)


def test_the_form_its_errors_and_its_answer(lab: BrowserContext, inputs: Inputs) -> None:
    page = lab.new_page()
    page.goto("/jobs/new")
    for pointer in ("/model", "/dataset"):
        page.locator(f'[data-source="{pointer}"] > .choices input[value=hub]').check()
    for details in page.locator(".settings > details").all():
        details.locator("summary").first.click()
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.locator(".wrong").first).to_be_visible()
    check(page)
    page.locator('[data-source="/model"] > .choices input[value=upload]').check()
    page.locator("#s-model-file").set_input_files(inputs.model)
    page.get_by_label("Config of a bare state dict").fill(json.dumps(inputs.config))
    page.locator('[data-source="/dataset"] > .choices input[value=upload]').check()
    page.locator("#s-dataset-file").set_input_files(inputs.dataset)
    expect(page.locator("output", has_text="complete")).to_have_count(2)
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.get_by_role("button", name="Start the job")).to_be_visible()
    check(page)


def test_a_finished_job_and_its_question(browser: Browser, stack: Stack, finished_job: str, theme: str) -> None:
    with visiting(browser, stack.url, color_scheme=theme) as context:
        page = context.new_page()
        page.goto(f"/jobs/{finished_job}")
        expect(page.locator("#forgetting canvas")).to_be_visible()
        for figure in page.locator(".figures img").all():
            figure.scroll_into_view_if_needed()
            expect(figure).to_have_js_property("complete", True)
            assert figure.evaluate("(image) => image.naturalWidth") > 0
        check(page)
        page.get_by_role("button", name="Republish").click()
        check(page)


def test_nothing_moves_for_those_who_ask_for_it(lab: BrowserContext, standing: dict[str, str]) -> None:
    page = lab.new_page()
    page.goto(f"/jobs/{standing['running']}")
    moving = "getComputedStyle(document.querySelector('.badge'), '::before').animationName"
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "breathe"
