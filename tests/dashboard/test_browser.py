"""The dashboard as people use it: in Chromium, on the real stack."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from app.artifacts.schemas import ArtifactView
from app.dashboard.snippets import Snippets
from app.jobs.record import new_job_id
from app.jobs.repository import JobRepository, connect
from app.jobs.schemas import JobView
from known_core.client import Client
from known_core.files import canonical_json
from known_core.stack import Stack
from tests.conftest import SETTINGS, Inputs, ended
from tests.dashboard.watching import visiting
from tests.hub.server import LocalHub
from tests.hub.test_enhance import data_files, model_files

pytestmark = pytest.mark.browser
KeyOf = Callable[..., str]
LONG = {"epochs_per_stage": 1000, "learning_rate": 1e-3, "batch_size": 8}  # minutes, were it not canceled


@pytest.fixture
def visitor(browser: Browser, stack: Stack) -> Iterator[BrowserContext]:
    with visiting(browser, stack.url) as context:
        yield context


def asked(stack: Stack, path: str) -> dict[str, Any]:
    """What the API answers."""
    answer: dict[str, Any] = httpx.get(stack.url + path).raise_for_status().json()
    return answer


def upload(page: Page, pointer: str, path: Path) -> None:
    source = page.locator(f'[data-source="{pointer}"]')
    source.locator("input[type=file]").set_input_files(path)
    expect(source.locator("output").first).to_have_text(re.compile("complete"))


def fill_in(page: Page, inputs: Inputs, **settings: Any) -> None:
    """The quick job of the other tests, by hand."""
    page.goto("/jobs/new")
    upload(page, "/model", inputs.model)
    page.get_by_label("Config of a bare state dict").fill(canonical_json(inputs.config).decode())
    upload(page, "/dataset", inputs.dataset)
    page.locator('input[name="source:/evaluation/downstream"][value=upload]').check()
    upload(page, "/evaluation/downstream", inputs.downstream)
    for summary in ("Forgetting", "Nowcast", "Evaluation"):
        page.locator("summary", has_text=summary).click()
    values = {"/forgetting/learning_rate": "0.001", "/forgetting/batch_size": "32", "/evaluation/probe_examples": "20",
              "/evaluation/probe_epochs": "1", "/evaluation/probe_learning_rates": "0.001"}  # fmt: skip
    for name, value in (values | settings).items():
        page.locator(f'[name="{name}"]').fill(value)
    for control in ("continued", "swa"):
        page.get_by_label(control, exact=True).uncheck()


def test_a_job_from_the_form_to_its_files(
    visitor: BrowserContext, stack: Stack, inputs: Inputs, client: Client
) -> None:
    page = visitor.new_page()
    fill_in(page, inputs)
    page.get_by_label("What the model does").select_option("image-classification")
    page.locator("summary", has_text="metadata").click()
    page.get_by_label("Metadata").fill('{"made": "by hand"}')
    newest = asked(stack, "/v1/jobs?limit=1")["first_id"]
    page.get_by_role("button", name="Check the inputs").click()
    understood = page.get_by_role("region", name="What was understood")
    expect(understood).to_contain_text("image-classification")
    expect(understood).to_contain_text("3,864")
    assert asked(stack, "/v1/jobs?limit=1")["first_id"] == newest  # nothing is started yet
    expect(page.locator("#estimate")).to_contain_text(re.compile(r"\d s \(|no worker has calibrated"))
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile(r"/jobs/job_[0-9a-f]{24}$"))
    job_id = page.url.rpartition("/")[2]
    page.evaluate("window.opened = true")  # lost, if the page were loaded again
    expect(page.locator(".badge")).to_have_text("succeeded", timeout=120_000)
    expect(page.locator("#forgetting canvas")).to_be_visible()
    expect(page.get_by_role("region", name="Files").first).to_contain_text("x2/model.safetensors")
    expect(page.locator(".conclusion")).to_contain_text(client.report(job_id)["conclusion"])
    expect(page.locator("table.gains tbody tr")).to_have_count(4)
    assert page.evaluate("window.opened")
    request = client.job(job_id)["request"]
    assert request["task"] == "image-classification"
    assert request["forgetting"] == {"learning_rate": 0.001, "batch_size": 32}
    assert request["nowcast"] == {"controls": []}
    assert request["model"]["config"] == inputs.config
    assert client.job(job_id)["metadata"] == {"made": "by hand"}
    went_through = [event["phase"] for event in client.events(job_id, follow=False) if event.type == "phase"]
    shown = [text.split()[0] for text in page.locator(".phases li").all_text_contents()]
    assert shown == [phase.partition("_")[0] for phase in dict.fromkeys(went_through)]
    with page.expect_download() as download:
        page.get_by_role("link", name="x2/model.safetensors").click()
    manifest = {entry["path"]: entry for entry in asked(stack, f"/v1/jobs/{job_id}/manifest")["files"]}
    assert Path(download.value.path()).stat().st_size == manifest["x2/model.safetensors"]["bytes"]


def test_a_job_is_canceled_after_a_question(visitor: BrowserContext, start_job: Callable[..., str]) -> None:
    job_id = start_job(forgetting=LONG)
    page = visitor.new_page()
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator(".badge")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge")).to_have_text("canceled")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for ever").click()
    page.wait_for_url(re.compile(r"/$"))
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_role("alert")).to_contain_text("job_not_found")


def test_what_is_wrong_is_shown_where_it_is(
    visitor: BrowserContext, inputs: Inputs, tmp_path: Path, client: Client
) -> None:
    page = visitor.new_page()
    fill_in(page, inputs, **{"/forgetting/rate": "2"})
    page.get_by_role("button", name="Check the inputs").click()
    rate = page.locator('[name="/forgetting/rate"]')
    expect(rate).to_have_attribute("aria-invalid", "true")
    expect(rate).to_be_focused()
    expect(page.locator("#problem")).to_contain_text("request_invalid")
    expect(page.locator("#problem")).to_contain_text("0.95")
    rate.fill("")
    page.locator('[data-source="/dataset"] summary').click()
    columns = page.locator('[name="/dataset/columns"]')
    for wrong, said in (("text=review", "valid dictionary"), ('{"text": ""}', "at least 1 character")):
        columns.fill(wrong)
        page.get_by_role("button", name="Check the inputs").click()
        expect(page.locator('[data-field="/dataset/columns"] .wrong')).to_contain_text(said)
        expect(columns).to_be_focused()
    columns.fill("")
    with zipfile.ZipFile(tmp_path / "pickled.zip", "w") as archive:
        archive.writestr("pytorch_model.bin", b"\x80\x04.")
    upload(page, "/model", tmp_path / "pickled.zip")
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.locator("#problem")).to_contain_text("unsafe_format")
    expect(page.locator("#problem")).to_contain_text("Convert to safetensors")
    expect(page.locator('[data-source="/model"] .wrong')).to_be_visible()
    (tmp_path / "nothing").touch()
    page.locator("#s-dataset-file").set_input_files(tmp_path / "nothing")
    expect(page.locator('[data-source="/dataset"] output')).to_contain_text("upload_empty")


@pytest.mark.slow
def test_a_page_goes_on_after_the_service_was_restarted(
    visitor: BrowserContext, stack: Stack, client: Client, start_job: Callable[..., str]
) -> None:
    job_id = start_job(forgetting=LONG)
    page = visitor.new_page()
    page.goto(f"/jobs/{job_id}")
    expect(page.locator("#now-what")).to_contain_text("forgetting stage", timeout=60_000)
    os.kill(stack.pids()["api"], signal.SIGKILL)
    stack.restart("api")
    stack._wait_until_ready()
    before = int(page.locator("#now-bar").get_attribute("value") or 0)
    page.wait_for_function("(before) => document.getElementById('now-bar').value > before", arg=before)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge")).to_have_text("canceled")


def test_an_upload_goes_on_after_a_reload(visitor: BrowserContext, tmp_path: Path) -> None:
    (tmp_path / "large.zip").write_bytes(os.urandom(6 << 20))
    page = visitor.new_page()
    network = visitor.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2 << 20}
    page.goto("/jobs/new")
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    source = page.locator('[data-source="/model"]')
    source.locator("input[type=file]").set_input_files(tmp_path / "large.zip")
    page.wait_for_function("""() => document.querySelector('[data-source="/model"] progress').value > 0.2""")
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.locator("#busy")).to_contain_text("not complete")
    page.reload()
    network.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    with page.expect_request(lambda request: request.method == "PATCH") as patch:
        upload(page, "/model", tmp_path / "large.zip")
    assert int(patch.value.headers["upload-offset"]) > 0


@pytest.mark.slow
def test_the_list_is_live_filtered_and_paged(
    visitor: BrowserContext, stack: Stack, start_job: Callable[..., str], finished_job: str
) -> None:
    page = visitor.new_page()
    page.goto("/")
    job_id = start_job()
    row = page.locator(f"#row-{job_id}")
    expect(row.locator(".badge")).to_have_text("succeeded", timeout=60_000)  # it came, and went on, by itself
    page.get_by_role("link", name="failed", exact=True).click()
    expect(page.locator("h1")).to_have_text("Jobs")
    expect(row).to_have_count(0)
    page.get_by_role("link", name="succeeded", exact=True).click()
    expect(row).to_be_visible()
    made = [new_job_id() for _ in range(21)]
    with connect(stack.store_url) as store:  # a page and one more, faster than by inspecting the same files again
        for other in made:
            fields: dict[str, Any] = {name: {} for name in ("request", "spec", "hub", "resolved", "metadata")}
            JobRepository(store).create(other, "local", fields)
            JobRepository(store).cancel(other)
    page.goto("/?status=canceled")
    page.get_by_role("link", name="Older").click()
    expect(page.locator(f"#row-{made[0]}")).to_be_visible()
    expect(page.locator(f"#row-{made[-1]}")).to_have_count(0)
    page.get_by_role("link", name="Newest").click()
    expect(page.locator(f"#row-{made[-1]}")).to_be_visible()


def test_the_list_stands_still_when_it_is_told_to(visitor: BrowserContext, start_job: Callable[..., str]) -> None:
    page = visitor.new_page()
    page.goto("/")
    live = page.get_by_role("button", name="Live")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert asked == []
    with page.expect_request(lambda request: "hx-request" in request.headers):
        live.click()


@pytest.fixture
def on_the_hub(browser: Browser, tmp_path: Path) -> Iterator[tuple[BrowserContext, Client, LocalHub]]:
    """A browser at a service of its own, and a Hub with a model and its data, private ones of alice's."""
    with LocalHub({"hf_alice": "alice"}) as hub:
        hub.add("models", "alice/resnet", model_files(tmp_path / "model"), private=True)
        hub.add("datasets", "alice/digits", data_files(tmp_path / "data"), private=True)
        environment = SETTINGS | {"KNOWN_HUB_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        with (
            Stack(tmp_path / "stack", port=0, environment=environment) as stack,
            Client(stack.url) as client,
            visiting(browser, stack.url) as context,
        ):
            yield context, client, hub


@pytest.mark.slow
def test_from_the_hub_and_back_to_it(on_the_hub: tuple[BrowserContext, Client, LocalHub]) -> None:
    context, client, hub = on_the_hub
    page = context.new_page()
    page.goto("/jobs/new")
    for pointer, repo in (("/model", "alice/resnet"), ("/dataset", "alice/digits")):
        source = page.locator(f'[data-source="{pointer}"]')
        source.locator("> .choices input[value=hub]").check()
        source.get_by_label("Repository").first.fill(repo)
    page.locator('[data-source="/dataset"] summary').click()
    page.locator('[name="/dataset/columns"]').fill('{"label": "digit"}')
    page.get_by_role("button", name="Check the inputs").click()
    expect(page.locator("#problem")).to_contain_text("hub_not_found")  # without a token it is not there
    page.get_by_label("Token", exact=True).fill("hf_alice")
    page.locator("summary", has_text="Evaluation").click()
    for name, value in (("probe_examples", "20"), ("probe_epochs", "1"), ("select", "x4")):
        page.locator(f'[name="/evaluation/{name}"]').fill(value)
    page.get_by_role("button", name="Check the inputs").click()
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator(".badge")).to_have_text("succeeded", timeout=120_000)
    job_id = page.url.rpartition("/")[2]

    def republish(**fields: str) -> None:
        page.get_by_role("button", name="Republish").click()
        for label, text in fields.items():
            page.get_by_label(label.replace("_", " ")).fill(text)
        page.get_by_role("button", name="Publish", exact=True).click()

    republish()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("publish_target_missing")
    page.get_by_role("button", name="Leave it").click()
    republish(Repository="bob/better", Hub_token="hf_alice")
    expect(page.get_by_role("alert").first).to_contain_text("hub_forbidden")
    republish(Repository="alice/better")
    expect(page.get_by_role("link", name=f"{hub.url}/alice/better")).to_be_visible()
    head = hub.repos["models", "alice/better"].at("main")
    assert head is not None
    sha256 = {file.path: file.sha256 for file in client.files(job_id)}["x4/model.safetensors"]
    assert head.files["model.safetensors"].sha256 == sha256


def test_pages_say_what_they_may_load(stack: Stack) -> None:
    for path in ("/", "/jobs/new", f"/jobs/job_{'0' * 24}"):
        policy = httpx.get(stack.url + path).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_pages_are_read_without_scripts(browser: Browser, stack: Stack, client: Client, finished_job: str) -> None:
    with visiting(browser, stack.url, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/?status=succeeded")
        page.locator(f"#row-{finished_job} a").click()
        expect(page.locator(".badge")).to_have_text("succeeded")
        expect(page.locator(".conclusion")).to_contain_text(client.report(finished_job)["conclusion"])
        expect(page.locator("table.gains")).to_be_visible()
        expect(page.get_by_role("link", name="x2/model.safetensors")).to_be_visible()
        expect(page.get_by_role("button", name="Delete")).to_be_hidden()


def test_the_theme_is_remembered(visitor: BrowserContext) -> None:
    page = visitor.new_page()
    page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.goto("/jobs/new")
    assert page.evaluate(ground) == dark
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")


def test_everything_is_reached_by_keyboard(visitor: BrowserContext, finished_job: str) -> None:
    page = visitor.new_page()
    page.goto("/")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    assert {"New job", "failed", "Live"} <= reached


def test_logging_in_by_hand(browser: Browser, guarded: Stack, key_of: KeyOf) -> None:
    with visiting(browser, guarded.url) as context:
        page = context.new_page()
        page.goto("/jobs/new")
        page.get_by_label("API key").fill("known_nonsense")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("key_invalid")
        page.get_by_label("API key").fill(key_of("ann"))
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(re.compile("/jobs/new$"))
        assert page.evaluate("document.cookie") == ""
        expect(page.get_by_role("banner")).to_contain_text("ann")
        page.get_by_role("button", name="Log out").click()
        page.goto("/")
        expect(page.get_by_label("API key")).to_be_visible()


@pytest.mark.slow
def test_the_snippets_do_what_they_say(client: Client, stack: Stack, finished_job: str, tmp_path: Path) -> None:
    job = JobView.model_validate(asked(stack, f"/v1/jobs/{finished_job}"))
    files = [ArtifactView.model_validate(file) for file in asked(stack, job.urls.artifacts)["data"]]
    figures = [figure["name"] for figure in client.report(finished_job)["figures"]]
    ways = Snippets(stack.url, with_key=False)
    snippets = {snippet.name: snippet for snippet in ways.of_job(job, ["republish", "delete"], figures, files)}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    made = run(sys.executable, "-c", snippets["repeat"].python).strip()
    view = JobView.model_validate(asked(stack, f"/v1/jobs/{made}"))
    assert view.request == job.request
    [cancel] = [snippet for snippet in ways.of_job(view, ["pause", "cancel"], [], []) if snippet.name == "change"]
    run("bash", "-c", cancel.curl)
    assert ended(client, made).status == "canceled"
    again = json.loads(run("bash", "-c", snippets["repeat"].curl))["id"]
    for name in ("follow", "look", "report", "download"):
        run(sys.executable, "-c", snippets[name].python)
    assert "attempt 1" in run("bash", "-c", snippets["look"].curl)
    assert '"conclusion"' in run("bash", "-c", f"set -e; {snippets['report'].curl}")
    assert all((tmp_path / f"{name}.{kind}").stat().st_size > 1000 for name in figures for kind in ("svg", "png"))
    for listed in (ways.of_list(None, "succeeded"), ways.of_list(finished_job, None)):
        for said in (run(sys.executable, "-c", listed.python), run("bash", "-c", listed.curl)):
            assert (finished_job in said) == ("succeeded" in listed.curl), listed
    assert "event: status" in run("bash", "-c", snippets["follow"].curl)
    assert "FAILED" not in run("bash", "-c", f"set -e; {snippets['download'].curl}")
    selected = job.result.selected if job.result else ""
    fetched = [path / selected / "model.safetensors" for path in (tmp_path, tmp_path / finished_job)]
    assert fetched[0].read_bytes() == fetched[1].read_bytes()
    assert ended(client, again).status == "succeeded"
