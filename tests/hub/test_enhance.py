"""The whole way: `known enhance --model hub:… --dataset hub:… --push hub:… --wait` on a real stack and a local Hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import load, load_file

from known_core.client import Client
from known_core.errors import KnownError
from known_core.files import write_json
from known_core.sample_data import load_sample
from known_core.stack import Stack
from tests.conftest import QUICK, SETTINGS
from tests.hub.conftest import TOKENS
from tests.hub.server import Fault, File, LocalHub, Repo
from tests.hub.test_nowcast import weights

CANARY = "hf_canary_5f0c1d"  # alice's other token: it may be written nowhere


@dataclass(frozen=True)
class World:
    """A Hub with alice's repositories, and a stack that knows it."""

    hub: LocalHub
    stack: Stack
    folder: Path

    def known(
        self, *arguments: str, token: str | None = CANARY, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KNOWN_"))}
        environment |= {"KNOWN_SERVER": self.stack.url, "COLUMNS": "300"} | ({"HF_TOKEN": token} if token else {})
        environment |= variables
        return subprocess.run(
            [sys.executable, "-m", "known_core", *arguments],
            capture_output=True, text=True, env=environment, timeout=200, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        return self.hub.repos[kind, repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repo(repo_id).at(revision)
        assert commit is not None
        return {name: file.data for name, file in commit.files.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with LocalHub({**TOKENS, CANARY: "alice"}, multipart_bytes=6_000_000) as hub:
        hub.add("models", "alice/resnet", model_files(folder / "model"), private=True)
        hub.add("datasets", "alice/digits", data_files(folder / "data"), private=True)
        environment = {**SETTINGS, "KNOWN_HUB_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        with Stack(folder / "stack", port=0, environment=environment) as stack:
            write_json(folder / "quick.json", QUICK)
            yield World(hub, stack, folder)


def model_files(folder: Path) -> dict[str, bytes]:
    """A tiny ResNet as save_pretrained writes it, with files that are only carried over."""
    torch.manual_seed(0)
    labels = {index: str(index) for index in range(5)}
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# alice's resnet\n")
    (folder / "notes.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data_files(folder: Path, label: str = "digit") -> dict[str, bytes]:
    """Digits 0-4 as parquet with the class names in it, as the datasets library pushes it.

    Args:
        label: the column's name.
    """
    folder.mkdir()
    digits = load_sample("digits").of_classes([0, 1, 2, 3, 4])
    order = np.random.default_rng(0).permutation(400)
    features = datasets.Features({"img": datasets.Image(), label: datasets.ClassLabel(names=["0", "1", "2", "3", "4"])})
    for name, part in (("train", order[:300]), ("test", order[300:])):
        rows = {"img": [png(digits.images[i]) for i in part], label: [int(digits.labels[i]) for i in part]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    return {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()}


def png(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


ENHANCE = ("enhance", "--model", "hub:alice/resnet", "--dataset", "hub:alice/digits", "--column", "label=digit")


@pytest.fixture(scope="module")
def published(world: World) -> dict[str, Any]:
    """The job of the issue, as its user starts it."""
    quick = ("--settings", str(world.folder / "quick.json"), "--select", "x2")
    done = world.known(*ENHANCE, *quick, "--push", "hub:alice/resnet-know", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    job: dict[str, Any] = json.loads(done.stdout)
    return job


def test_a_hub_id_in_and_a_repository_out(world: World, published: dict[str, Any]) -> None:
    result = published["result"]
    assert result["hub_url"] == f"{world.hub.url}/alice/resnet-know"
    assert world.repo("alice/resnet-know").refs["main"] == result["commit"]
    assert world.repo("alice/resnet-know").private
    before, after = world.files("alice/resnet"), world.files("alice/resnet-know")
    changed = {"README.md", "model.safetensors", "pytorch_model.bin"}
    assert {name: after[name] for name in before.keys() - changed} == {n: before[n] for n in before.keys() - changed}
    assert after.keys() - before.keys() == {
        f"known/{name}" for name in ("base-model-card.md", "report.json", "report.md", "manifest.json",
                                     "forgetting-curve.png", "before-after.png", "landscape.png")
    }  # fmt: skip
    assert "pytorch_model.bin" not in after
    assert after["known/base-model-card.md"] == before["README.md"]
    old, new = load(before["model.safetensors"]), load(after["model.safetensors"])
    assert old.keys() == new.keys()
    assert not torch.equal(old["classifier.1.weight"], new["classifier.1.weight"])


def test_the_card_says_what_was_done(world: World, published: dict[str, Any]) -> None:
    card = ModelCard(world.files("alice/resnet-know")["README.md"].decode())
    assert isinstance(card.data, ModelCardData)
    commits = {kind: world.repo(repo, kind).refs["main"] for kind, repo in
               (("models", "alice/resnet"), ("datasets", "alice/digits"))}  # fmt: skip
    assert card.data.base_model == "alice/resnet"
    assert card.data.license == "mit"
    assert card.data.datasets == ["alice/digits"]
    assert len(card.data.eval_results or []) >= 2
    for commit in commits.values():
        assert commit in card.text
    origins = {name: source["hub"] for name, source in published["resolved"]["sources"].items()}
    assert origins == {
        "model": {"repo_id": "alice/resnet", "revision": commits["models"]},
        "dataset": {"repo_id": "alice/digits", "revision": commits["datasets"]},
    }


def test_the_published_model_loads_and_runs(world: World, published: dict[str, Any], tmp_path: Path) -> None:
    for name, data in world.files("alice/resnet-know").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    inputs = processor(Image.new("RGB", (8, 8)), return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 5)


@pytest.mark.slow
def test_its_manifest_is_enough_to_run_the_job_again(world: World, published: dict[str, Any], tmp_path: Path) -> None:
    for name in ("manifest.json", "report.json"):
        (tmp_path / name).write_bytes(world.files("alice/resnet-know")[f"known/{name}"])
    done = world.known(
        "reproduce", str(tmp_path / "manifest.json"), "--work", str(tmp_path / "work"), "--exact", "--json",
        HF_ENDPOINT=world.hub.url, XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identical"] is True


def test_only_what_is_needed_was_fetched(world: World, published: dict[str, Any]) -> None:
    assert [line for line in world.hub.requests if "pytorch_model.bin" in line] == []
    commit = world.repo("alice/resnet").refs["main"]
    assert [line for line in world.hub.requests if "/resolve/main/" in line and "alice/resnet/" in line] == []
    assert any(f"/alice/resnet/resolve/{commit}/model.safetensors" in line for line in world.hub.requests)


def test_the_token_is_written_nowhere(world: World, published: dict[str, Any]) -> None:
    with Client(world.stack.url) as client:
        events = json.dumps([event.data for event in client.events(published["id"])])
        assert CANARY not in events + client.logs(published["id"]) + json.dumps(client.job(published["id"]).raw)
    found = [
        path for path in (world.folder / "stack").rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert found == []


def test_phases_are_told(world: World, published: dict[str, Any]) -> None:
    with Client(world.stack.url) as client:
        phases = [event["phase"] for event in client.events(published["id"]) if event["type"] == "phase"]
    assert phases[0] == "downloading"
    assert phases[-1] == "publishing"


def test_a_dry_run_shows_what_is_understood(world: World) -> None:
    jobs = world.known("jobs", "list")
    done = world.known(*ENHANCE, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout)["resolved"]
    assert resolved["task"] == "image-classification"
    assert resolved["dataset"]["columns"] == {"image": "img.bytes", "label": "digit"}
    assert resolved["dataset"]["train_examples"] == 300
    assert resolved["sources"]["model"]["hub"]["repo_id"] == "alice/resnet"
    assert world.known("jobs", "list").stdout == jobs.stdout
    shown = world.known(*ENHANCE, "--dry-run")
    assert "task: image-classification" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "token", "code"),
    [
        (("--model", "hub:alice/resnet"), None, "hub_not_found"),
        (("--model", "hub:alice/resnet"), "hf_bob", "hub_not_found"),
        (("--model", "hub:alice/resnet"), "hf_wrong", "hub_token_refused"),
        (("--model", "hub:alice/resnet@nowhere"), CANARY, "hub_revision_not_found"),
        (("--model", "hub:alice/../x"), CANARY, "repo_id_invalid"),
        (("--push", "hub:bob/x"), CANARY, None),  # only the Hub knows, when it is asked to write
        (("--push", "hub:alice"), CANARY, "repo_id_invalid"),
    ],
)
def test_what_cannot_be_is_said_before_a_job_begins(
    world: World, arguments: tuple[str, ...], token: str | None, code: str | None
) -> None:
    done = world.known(*ENHANCE, *arguments, "--dry-run", token=token)
    if code is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert f"({code})" in done.stderr, done.stderr
        assert CANARY not in done.stderr + done.stdout


def test_pickles_are_refused_with_the_remedy(world: World) -> None:
    world.hub.add("models", "alice/old", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    done = world.known(*ENHANCE, "--model", "hub:alice/old", "--dry-run")
    assert "(unsafe_format)" in done.stderr
    assert "refs/pr" in done.stderr


def test_republishing_waits_out_a_hub_that_is_down(world: World, published: dict[str, Any]) -> None:
    world.hub.faults.append(Fault("POST", "/api/models/alice/third/commit", 503, times=2))
    done = world.known("jobs", "republish", published["id"], "--push", "hub:alice/third", "--create-pr")
    assert done.returncode == 0, done.stderr
    pull = world.files("alice/third", "refs/pr/1")
    assert "model.safetensors" in pull


def test_wrong_states_of_republishing(world: World, published: dict[str, Any]) -> None:
    with Client(world.stack.url) as client:
        job = client.enhance({
            "model": {"hub": {"repo_id": "alice/resnet"}},
            "dataset": {"hub": {"repo_id": "alice/digits"}, "columns": {"label": "digit"}},
            "forgetting": {"epochs_per_stage": 1000},
        }, token=CANARY)  # fmt: skip
        with pytest.raises(KnownError, match="result_not_ready"):
            client.republish(job.id, "hub:alice/x", token=CANARY)
        client.cancel(job["id"])
    done = world.known("jobs", "republish", "job_" + "0" * 24, "--push", "hub:alice/x")
    assert "(job_not_found)" in done.stderr


@pytest.mark.slow
def test_a_trajectory_of_revisions_whose_publishing_fails_at_first(world: World) -> None:
    """Five revisions of one repository, any architecture, no data, to a namespace that is another's.

    The job has its result all the same, and republish puts it elsewhere.
    """
    repo = world.hub.add("models", "alice/run", {"config.json": b'{"any": "thing"}'})
    files = [{"model.safetensors": File(weights(seed), lfs=True)} for seed in range(5)]
    states = [repo.commit("main", f"s{seed}", files[seed]) for seed in range(5)]
    flags = [part for state in states for part in ("--trajectory", f"hub:alice/run@{state.oid}")]
    out = ("--out", str(world.folder / "run"))
    done = world.known("enhance", *flags, "--push", "hub:bob/run-know", "--wait", "--json", *out)
    assert done.returncode == 1
    job = json.loads(done.stdout)
    assert (job["status"], job["result"]["publish_error"]["code"]) == ("succeeded", "hub_forbidden")
    assert job["result"]["selected"] == "x2"
    assert "Nothing was measured" in job["result"]["conclusion"]
    local = world.folder / "run" / "x2" / "model.safetensors"
    assert load_file(local).keys() == {"layer.weight", "layer.bias"}

    again = world.known("jobs", "republish", job["id"], "--push", "hub:alice/run-know")
    assert again.returncode == 0, again.stderr
    assert f"published: {world.hub.url}/alice/run-know" in again.stdout
    with Client(world.stack.url) as client:
        shown = client.job(job["id"])
    assert (shown["result"]["commit"], shown["republishing"]) == (world.repo("alice/run-know").refs["main"], False)
    assert shown["result"]["publish_error"] is None
    assert world.files("alice/run-know")["config.json"] == b'{"any": "thing"}'
    assert world.files("alice/run-know")["model.safetensors"] == local.read_bytes()

    uploads = sum(line.startswith("PUT /lfs/") for line in world.hub.requests)
    assert world.known("jobs", "republish", job["id"], "--push", "hub:alice/run-know").returncode == 0
    assert sum(line.startswith("PUT /lfs/") for line in world.hub.requests) == uploads
