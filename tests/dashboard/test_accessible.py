"""Every page in both themes: axe finds nothing against WCAG 2.2 AA, and a telephone's width needs no scrolling."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from app.jobs.record import JobStatus
from app.jobs.repository import JobRepository, connect
from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import Inputs
from tests.dashboard.watching import visiting

pytestmark = pytest.mark.browser
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module")
def standing(guarded: Stack, key_of: Callable[..., str], inputs: Inputs) -> Iterator[dict[str, str]]:
    """Jobs in every state but succeeded, by state; they stay so, since this test is their worker. And their key."""
    key = key_of("lab")
    store = connect(guarded.store_url)
    repository = JobRepository(store)
    with Client(guarded.url, key) as client:
        request = inputs.request(client, f"{guarded.url}#lab")
        jobs = {name: client.enhance(request)["id"] for name in ("running", "failed", "canceled", "paused", "queued")}
        client.cancel(jobs["canceled"])
        client.pause(jobs["paused"])
    fences = {name: repository.claim(jobs[name], "test", 600, 3) or 0 for name in ("running", "failed")}
    for event in running_events():
        fields = {name: event[name] for name in ("phase",) if name in event}
        if event["type"] == "progress":
            fields["progress"] = json.dumps({name: event[name] for name in ("phase", "step", "total", "eta_seconds")})
        repository.add_event(jobs["running"], fences["running"], event, fields)
    repository.mark_running(jobs["running"], fences["running"])
    wrong = {
        "code": "out_of_memory",
        "message": "memory ran out, after all that could be tried with less",
        "hint": "Lower forgetting.max_length, use smaller images, or run on a larger GPU.",
        "retryable": False,
    }
    repository.finish(jobs["failed"], fences["failed"], JobStatus.FAILED, wrong)
    yield {**jobs, "key": key}
    store.close()


def running_events() -> Iterator[dict[str, Any]]:
    """What a job says until it is in the third of its stages."""
    yield {"type": "phase", "phase": "downloading", "detail": ""}
    yield {"type": "phase", "phase": "evaluating_before", "detail": ""}
    yield {"type": "metric", "name": "accuracy", "value": 0.981, "phase": "evaluating_before", "candidate": "unchanged"}
    for stage, total in enumerate((120, 60, 30)):
        yield {"type": "phase", "phase": "forgetting", "detail": f"{stage + 1} of 4"}
        for step in range(3, total + 1 if stage < 2 else 20, 3):
            loss = 0.2 + 0.4 / (1 + step / 12) + 0.12 * stage + 0.02 * ((step * 7) % 5 - 2)
            yield {"type": "progress", "phase": "forgetting", "step": step, "total": total,
                   "eta_seconds": round((total - step) * 0.4, 1), "loss": round(loss, 4)}  # fmt: skip
        if stage < 2:
            yield {"type": "metric", "name": "accuracy", "value": 0.962 - 0.07 * stage, "phase": "forgetting",
                   "state": stage + 1}  # fmt: skip


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lab(browser: Browser, guarded: Stack, standing: dict[str, str], theme: str) -> Iterator[BrowserContext]:
    """Logged in."""
    with visiting(browser, guarded.url, color_scheme=theme, reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto("/login")
        page.get_by_label("API key").fill(standing["key"])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/")
        yield context


def check(page: Page) -> None:
    """At a desk's width and at a telephone's."""
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 900})
        found = Axe().run(page, options=RULES)
        assert found.violations_count == 0, found.generate_report()
        scrolls = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(scrolls) <= 0, f"{page.url} at {width}"


@pytest.mark.parametrize("state", ["queued", "running", "paused", "failed", "canceled"])
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
    for details in page.locator("form > details").all():
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
