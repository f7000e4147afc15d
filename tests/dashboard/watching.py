"""Pages opened in Chromium that may ask their own server alone, and break none of its rules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect

_REPORT = """addEventListener("securitypolicyviolation",
    (event) => console.error(`policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sample}`))"""
_EXPECTED = "Failed to load resource"  # an answer that is no success: the tests look at what the page makes of it


@contextmanager
def visiting(browser: Browser, server: str, **options: Any) -> Iterator[BrowserContext]:
    """A browser of its own, so to say. On leaving, whatever its pages did wrong fails the test.

    Args:
        server: what its pages may ask; anything else is not there.
        options: of the context: viewport, color_scheme, ...
    """
    wrong: list[str] = []

    def refuse(route: Route) -> None:
        wrong.append(f"asked for {route.request.url}")
        route.abort()

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and _EXPECTED not in message.text:
            wrong.append(message.text)

    context = browser.new_context(base_url=server, **options)
    try:
        context.set_default_timeout(30_000)
        context.add_init_script(_REPORT)
        context.route(lambda url: not url.startswith(server), refuse)
        context.on("console", note)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        yield context
    finally:
        context.close()
    assert wrong == []


def see_figures(page: Page) -> None:
    """Go to each of a report's figures, as they are fetched when they come into view, and wait until they are drawn."""
    for figure in page.locator(".figures img").all():
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_js_property("complete", True)
        assert figure.evaluate("(image) => image.naturalWidth") > 0
    page.evaluate("scrollTo(0, 0)")


def log_in(context: BrowserContext, key: str) -> Page:
    """By the form, as a person does; returns the list of jobs."""
    page = context.new_page()
    page.goto("/login")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/")
    return page
