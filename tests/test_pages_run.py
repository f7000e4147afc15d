"""The commands and the Python of the documentation, run page by page as a reader would, on a real service.

Each page has a folder with what it names (``my-resnet``, ``data.zip``, ...), and a Hub with what it names there.
A block that is not run says why, in a comment above it (``tests/test_pages.py``).
"""

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from known_core.client import Client
from known_core.sample_data import load_sample, write_imagefolder
from known_core.stack import Stack
from tests.conftest import QUICK, SETTINGS, ended
from tests.hub.server import File, LocalHub
from tests.hub.test_enhance import data_files, model_files
from tests.known_core.tasks import tiny
from tests.test_pages import PAGES, ROOT, blocks

RUN = ("sh", "python")
SERVER, RECEIVER = "http://127.0.0.1:8000", "https://example.com/hook"  # as the pages have them
SAYS = {  # each page whose code is run, and what it prints
    "README.md": ("succeeded",),
    "docs/cli.md": ("succeeded",),
    "docs/client.md": ("succeeded", "job_not_found 404"),
    "docs/getting-started.md": ("succeeded",),
    "docs/guide.md": ("identical, every byte", "'phase': 'packaging'"),
    "docs/library.md": ("Nothing was measured", "Intervals are Student's t"),
    "docs/operations.md": ("team-a  active  read,write  ci",),
    "docs/report.md": (),
    "docs/webhooks.md": ("job_",),
}


@dataclass(frozen=True)
class World:
    """What a reader has: files, a service, and an account on the Hub."""

    folder: Path
    stack: Stack


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pages")
    with LocalHub({"hf_user": "user"}) as hub:
        fill(hub, folder)
        environment = {
            **SETTINGS, "KNOWN_HUB_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "KNOWN_WEBHOOK_ALLOW_HTTP": "true", "KNOWN_WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
        }  # fmt: skip
        with Stack(tmp_path_factory.mktemp("stack"), port=0, environment=environment) as stack:
            yield World(folder, stack)


def fill(hub: LocalHub, folder: Path) -> None:
    """The files and repositories that the pages name, tiny."""
    model = model_files(folder / "my-resnet")
    hub.add("models", "user/resnet", model, private=True)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for name, content in model.items():
            archive.writestr(name, content)
    hub.add("datasets", "user/data", data_files(folder / "hub-data", "label"), private=True)
    digits = load_sample("digits")
    order = np.random.default_rng(0).permutation(800)
    source, downstream = digits.of_classes([0, 1, 2, 3, 4]), digits.of_classes([5, 6, 7, 8, 9])
    write_imagefolder(folder / "data.zip", source.take(order[:200]), source.take(order[200:300]))
    write_imagefolder(folder / "downstream.zip", downstream.take(order[:200]))
    for name, packed in (("my-images", "data.zip"), ("my-new-task", "downstream.zip")):
        zipfile.ZipFile(folder / packed).extractall(folder / name)
    labels = tiny.labels(tiny.CLASSES)
    bert = tiny.save_bert(folder / "bert", "BertForSequenceClassification", **labels)
    hub.add("models", "user/bert", {path.name: path.read_bytes() for path in bert.iterdir()})
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("review", "stars"), *tiny.sentences()])
    run = hub.add("models", "user/run", {"config.json": b"{}"})
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 30, generator=generator)
    for step, name in enumerate(("theta0", "phi0", "phi1", "phi2", "phi3"), 1):
        moved = weights + 0.01 * step * torch.randn(40, 30, generator=generator)
        save_file({"layer.weight": moved}, folder / f"{name}.safetensors", metadata={"format": "pt"})
        state = File((folder / f"{name}.safetensors").read_bytes(), lfs=True)
        run.commit(f"step-{step}", "a state", {"model.safetensors": state}, base=run.refs["main"])
    (folder / ".venv").symlink_to(sys.prefix)


@pytest.fixture(scope="module")
def finished(world: World) -> Path:
    """Report and manifest of a job, for the pages that read them."""
    with Client(world.stack.url) as client:
        job = client.enhance(QUICK, model=world.folder / "model.zip", dataset=world.folder / "data.zip", progress=False)
        job.wait(progress=False).download(world.folder)
    return world.folder


def code_of(page: Path) -> dict[str, str]:
    """What is run of a page, by language."""
    kept = [block for block in blocks(page) if not block.why_not]
    scripts = {name: "\n".join(block.code for block in kept if block.language == name) for name in RUN}
    return {name: script for name, script in scripts.items() if script}


def run_page(name: str, folder: Path, stack: Stack, **environment: str) -> None:
    """First its commands, then its Python, each as one script."""
    code, said = code_of(ROOT / name), ""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KNOWN_"))}
    kept |= {"KNOWN_SERVER": stack.url, "XDG_CACHE_HOME": str(folder / ".cache"), "COLUMNS": "200"} | environment
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    commands = {"sh": ["bash", "-eo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for language, script in code.items():
        script = script.replace(SERVER, stack.url).replace(RECEIVER, "http://127.0.0.1:9999/hook")
        done = subprocess.run(
            [*commands[language], script], cwd=folder, env=kept, capture_output=True, text=True, check=False,
            timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        said += done.stdout
    assert [words for words in SAYS[name] if words not in said] == [], said[-3000:]


def test_every_block_is_run_or_says_why_not() -> None:
    """A page with a block that neither has a reason above it nor is a page that is run fails here."""
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if code_of(page)} == set(SAYS)


def test_the_client_s_page(stack: Stack, tmp_path: Path) -> None:
    run_page("docs/client.md", tmp_path, stack)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(SAYS.keys() - {"docs/client.md"}))
def test_a_page(name: str, world: World, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name in ("docs/guide.md", "docs/report.md"):
        request.getfixturevalue("finished")
    folder = Path(shutil.copytree(world.folder, tmp_path / "reader", symlinks=True))
    run_page(name, folder, world.stack, HF_TOKEN="hf_user", KNOWN_DATA_DIR=str(world.stack.logs.parent))
    with Client(world.stack.url) as client:  # what was started and not waited for
        assert {ended(client, job.id).status for job in client.jobs()} <= {"succeeded"}
