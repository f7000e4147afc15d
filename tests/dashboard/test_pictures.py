"""The pictures in docs/dashboard.md: `KNOWN_PICTURES=docs/images pytest -m slow tests/dashboard/test_pictures.py`."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import QUICK, Inputs, ended
from tests.dashboard.watching import log_in, see_figures, visiting

pytestmark = [pytest.mark.browser, pytest.mark.slow]
MAX_BYTES = 200_000
DESK, TELEPHONE = {"width": 1200, "height": 1000}, {"width": 375, "height": 760}


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., None]:
    folder = Path(os.environ.get("KNOWN_PICTURES", tmp_path))

    def screenshot(page: Page, name: str, **options: Any) -> None:
        page.evaluate("document.fonts.ready")
        taken = Image.open(BytesIO(page.screenshot(animations="disabled", **options)))
        path = folder / f"dashboard-{name}.png"
        taken.quantize(256).save(path, optimize=True)
        assert path.stat().st_size < MAX_BYTES

    return screenshot


def test_a_finished_job(
    browser: Browser, stack: Stack, client: Client, inputs: Inputs, keep: Callable[..., None]
) -> None:
    request = inputs.request(
        client, stack.url, nowcast={}, forgetting=QUICK["forgetting"] | {"epochs_per_stage": 4},
        evaluation=inputs.request(client, stack.url)["evaluation"] | {"seeds": 5, "probe_epochs": 15},
    )  # fmt: skip
    job_id = client.enhance(request)["id"]
    assert ended(client, job_id)["status"] == "succeeded"
    with visiting(browser, stack.url, viewport=DESK, color_scheme="light") as context:
        page = context.new_page()
        page.goto(f"/jobs/{job_id}")
        expect(page.locator("#forgetting canvas")).to_be_visible()
        see_figures(page)
        figures = page.locator("section", has=page.locator("#figures-title")).bounding_box()
        assert figures is not None
        height = figures["y"] + figures["height"] + 16
        keep(page, "job", full_page=True, clip={"x": 0, "y": 0, "width": 1200, "height": height})
        page.goto("/jobs/new")
        keep(page, "new")
    with visiting(browser, stack.url, viewport=TELEPHONE, color_scheme="light") as context:
        page = context.new_page()
        page.goto(f"/jobs/{job_id}")
        expect(page.locator("#forgetting canvas")).to_be_visible()
        keep(page, "mobile")


def test_a_running_job_and_the_list(
    browser: Browser, guarded: Stack, standing: dict[str, str], keep: Callable[..., None]
) -> None:
    with visiting(browser, guarded.url, viewport=DESK, color_scheme="dark") as context:
        page = log_in(context, standing["key"])
        page.goto(f"/jobs/{standing['running']}")
        expect(page.locator("#loss canvas").first).to_be_visible()
        keep(page, "running-dark")
    with visiting(browser, guarded.url, viewport=DESK, color_scheme="light") as context:
        keep(log_in(context, standing["key"]), "list")
