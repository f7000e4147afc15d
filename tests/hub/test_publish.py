"""Publishing, with the real client against the local Hub: one commit with everything, or none."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from known_core import publish as publishing
from known_core.card import draw_pictures
from known_core.errors import KnownError
from known_core.files import read_json, sha256_file
from known_core.publish import Publication
from known_core.report import render_markdown
from known_core.spec import HubTarget
from tests.artifacts import BASE_CARD, change_weights, drawn_once, write_artifacts
from tests.hub.server import Fault, File, LocalHub, Repo

# huggingface_hub's multipart upload uses an old parameter of its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
Client = Callable[[str | None], HfApi]
Publish = Callable[..., Publication]
REPO = "alice/base-know"
KNOWN_FILES = {"base-model-card.md", "report.json", "report.md", "manifest.json", "forgetting-curve.png",
               "before-after.png", "landscape.png"}  # fmt: skip


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return write_artifacts(tmp_path / "artifacts")


@pytest.fixture
def publish(hub: LocalHub, client: Client, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Publish x4 as alice, with fields of the target changed; nobody waits between attempts."""
    monkeypatch.setattr(publishing, "draw_pictures", drawn_once(draw_pictures))
    monkeypatch.setattr("known_core.hub.errors.WAITS_S", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)

    def run(*, token: str | None = "hf_alice", **changes: object) -> Publication:
        target = HubTarget.model_validate({"repo_id": REPO, **changes})
        return publishing.publish(artifacts, "x4", target, endpoint=hub.url, token=token)

    return run


def head(hub: LocalHub, repo_id: str = REPO) -> str:
    return hub.repos["models", repo_id].refs["main"]


def files(hub: LocalHub, commit: str, repo_id: str = REPO) -> dict[str, File]:
    return dict(hub.repos["models", repo_id].commits[commit].files)


def sent(hub: LocalHub, method: str, part: str) -> list[str]:
    return [line for line in hub.requests if line.startswith(method) and part in line]


def test_a_result_is_published_whole_in_one_commit(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    done = publish()
    repo = hub.repos["models", REPO]
    assert repo.private
    assert done == Publication(f"{hub.url}/{REPO}", repo.refs["main"], None, REPO)
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "x4, made with known"]
    published = files(hub, done.commit)
    own = {path.relative_to(artifacts / "x4").as_posix() for path in (artifacts / "x4").rglob("*") if path.is_file()}
    assert published.keys() == own | {f"known/{name}" for name in KNOWN_FILES}
    for name in own - {"README.md"}:
        assert published[name].data == (artifacts / "x4" / name).read_bytes(), name
    assert published["known/manifest.json"].data == (artifacts / "manifest.json").read_bytes()
    report = read_json(artifacts / "report.json")
    assert report["inputs"].pop("sample")  # excerpts of the training data stay at home
    assert json.loads(published["known/report.json"].data) == report
    assert published["known/report.md"].data.decode() == render_markdown(report)
    assert published["known/base-model-card.md"].data.decode() == BASE_CARD
    assert ModelCard(published["README.md"].data.decode()).data.get("license") == "apache-2.0"
    assert published["model.safetensors"].lfs
    assert len(sent(hub, "PUT", f"/lfs/{sha256_file(artifacts / 'x4' / 'model.safetensors')}/")) > 1  # in parts


def test_the_published_repository_loads(publish: Publish, client: Client, artifacts: Path, tmp_path: Path) -> None:
    publish()
    folder = client("alice").snapshot_download(REPO, local_dir=tmp_path / "copy")
    model = AutoModelForImageClassification.from_pretrained(folder)
    before: PreTrainedModel = AutoModelForImageClassification.from_pretrained(artifacts / "x4")
    for name, tensor in before.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name
    AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    with Image.open(Path(folder) / "known" / "forgetting-curve.png") as picture:
        picture.verify()


def test_the_same_again_is_no_commit_and_a_change_is_one(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    first = publish()
    puts = sent(hub, "PUT", "/lfs/")
    assert publish() == first
    assert publish(parent_commit="0" * 40) == first  # an answer that was lost, asked for again
    change_weights(artifacts)
    second = publish(parent_commit=first.commit, commit_message="other weights")
    repo = hub.repos["models", REPO]
    assert repo.commits[second.commit].parent == first.commit
    assert repo.commits[second.commit].title == "other weights"
    resent = {line.split("/")[2] for line in sent(hub, "PUT", "/lfs/")[len(puts) :]}
    assert resent == {sha256_file(artifacts / "x4" / "model.safetensors")}


def test_files_of_an_earlier_publication_go_and_others_stay(hub: LocalHub, publish: Publish) -> None:
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "known/old.json"]
    kept = ["LICENSE", "model.fp16.safetensors", "onnx/model.safetensors"]
    hub.add("models", REPO, dict.fromkeys([*old, *kept], b"old"), private=True)
    published = files(hub, publish().commit)
    assert not published.keys() & set(old)
    assert [published[name].data for name in kept] == [b"old"] * len(kept)


def test_a_pull_request_is_opened_once(hub: LocalHub, publish: Publish) -> None:
    hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    before = head(hub)
    done = publish(create_pr=True)
    assert done.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert head(hub) == before
    assert files(hub, done.commit).keys() >= {"model.safetensors", "README.md"}
    assert publish(create_pr=True) == done
    assert len(sent(hub, "POST", "/commit/")) == 1


def test_a_pull_request_to_a_new_repository(hub: LocalHub, publish: Publish) -> None:
    done = publish(create_pr=True)
    assert done.pr_url
    assert files(hub, head(hub)) == {}


def test_a_branch(hub: LocalHub, publish: Publish) -> None:
    repo = hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    repo.refs["dev"] = before = head(hub)
    done = publish(revision="dev")
    assert (repo.refs["dev"], head(hub)) == (done.commit, before)
    with pytest.raises(KnownError, match="no such revision"):
        publish(revision="other")


def test_a_head_that_moved_is_left_alone(hub: LocalHub, publish: Publish) -> None:
    repo = hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    expected = head(hub)
    repo.commit("main", "somebody else's", {"config.json": File(b"1")})
    moved = head(hub)
    with pytest.raises(KnownError) as caught:
        publish(parent_commit=expected)
    assert (caught.value.code, caught.value.retryable) == ("hub_head_moved", False)
    assert head(hub) == moved
    assert not sent(hub, "PUT", "/lfs/")


def test_a_head_that_moves_meanwhile(hub: LocalHub, publish: Publish) -> None:
    hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    hub.faults.append(Fault("POST", "/commit/", 412))
    with pytest.raises(KnownError) as caught:
        publish(parent_commit=head(hub))
    assert caught.value.code == "hub_head_moved"
    hub.faults.append(Fault("POST", "/commit/", 412))
    assert publish().commit == head(hub)  # without a parent it is planned anew


def test_a_public_repository_is_refused_before_anything_is_sent(hub: LocalHub, publish: Publish) -> None:
    hub.add("models", REPO, {"config.json": b"{}"})
    before = head(hub)
    with pytest.raises(KnownError) as caught:
        publish()
    assert caught.value.code == "hub_repo_public"
    assert head(hub) == before
    assert not sent(hub, "P", "/lfs/") + sent(hub, "POST", "/preupload/") + sent(hub, "POST", "/create")
    assert publish(private=False).commit == head(hub)


def test_a_public_repository_is_made_when_asked_for(hub: LocalHub, publish: Publish) -> None:
    publish(private=False)
    assert not hub.repos["models", REPO].private


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": "hf_mallory"}, "hub_token_refused"),
        ({"token": None}, "hub_token_refused"),
        ({"repo_id": "bob/new"}, "hub_forbidden"),
        ({"repo_id": "bob/public", "private": False}, "hub_forbidden"),
        ({"repo_id": "bob/secret"}, "hub_forbidden"),  # cannot be seen, so it is tried to be made
        ({"revision": "nowhere"}, "hub_revision_not_found"),
    ],
)
def test_what_the_hub_refuses(hub: LocalHub, publish: Publish, changes: dict[str, object], code: str) -> None:
    hub.add("models", "bob/public", {"config.json": b"{}"})
    hub.add("models", "bob/secret", {"config.json": b"{}"}, private=True)
    hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    before = {key: repo.refs["main"] for key, repo in hub.repos.items()}
    with pytest.raises(KnownError) as caught:
        publish(**changes)
    assert (caught.value.code, caught.value.retryable) == (code, False)
    assert {key: repo.refs["main"] for key, repo in hub.repos.items()} == before


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "a/../b", "a/b.git", "a/b\n", "https://huggingface.co/a/b"])
def test_names_that_are_none(repo_id: str, publish: Publish, hub: LocalHub) -> None:
    with pytest.raises(KnownError) as caught:
        publish(repo_id=repo_id)
    assert caught.value.code in ("repo_id_invalid", "endpoint_not_allowed")  # what has a host is told of it
    assert hub.requests == []


@pytest.mark.parametrize("path", [r"/api/models/alice/base-know", "/repos/create", "/tree/", "/validate-yaml",
                                  "/preupload/", "/objects/batch", "/lfs/.*/2", "/lfs/.*/complete", "/lfs/verify",
                                  "/commit/"])  # fmt: skip
def test_faults_that_pass_are_overcome(hub: LocalHub, publish: Publish, path: str) -> None:
    hub.faults += [Fault(method, path, status) for method in ("GET", "POST", "PUT") for status in (503, 429)]
    assert publish().commit == head(hub)
    repo = hub.repos["models", REPO]
    assert len(repo.commits) == 2
    assert sum(fault.times == 0 for fault in hub.faults) >= 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: LocalHub, publish: Publish) -> None:
    for create_pr in (False, True):
        hub.add("models", REPO, {"config.json": b"{}"}, private=True)
        hub.faults.append(Fault("POST", "/commit/", cut_after=10))
        done = publish(create_pr=create_pr)
        assert len(hub.repos["models", REPO].commits) == 3  # the Hub's own, the test's, and this one
        assert done.commit in hub.repos["models", REPO].commits
        assert bool(done.pr_url) == create_pr


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [(503, "hub_unreachable"), (429, "hub_rate_limited")])
def test_faults_that_stay_are_said(hub: LocalHub, publish: Publish, status: int, code: str) -> None:
    hub.faults.append(Fault("PUT", "/lfs/", status, times=1000))
    with pytest.raises(KnownError) as caught:
        publish()
    assert (caught.value.code, caught.value.retryable) == (code, True)
    assert files(hub, head(hub)) == {}


def test_no_hub_at_all(hub: LocalHub, publish: Publish, client: Client, artifacts: Path) -> None:
    target = HubTarget(repo_id=REPO)
    with pytest.raises(KnownError) as caught:
        publishing.publish(artifacts, "x4", target, endpoint="http://127.0.0.1:9", token="hf_alice")
    assert (caught.value.code, caught.value.retryable) == ("hub_unreachable", True)


def test_a_candidate_that_is_not_there(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    target = HubTarget(repo_id=REPO)
    with pytest.raises(KnownError) as caught:
        publishing.publish(artifacts, "x16", target, endpoint=hub.url, token="hf_alice")
    assert caught.value.code == "candidate_unknown"
    assert not hub.requests


def test_the_hub_does_not_like_the_files(hub: LocalHub, publish: Publish) -> None:
    hub.faults.append(Fault("POST", "/validate-yaml", 400))
    with pytest.raises(KnownError) as caught:
        publish()
    assert caught.value.code == "hub_refused"


def test_progress_is_told_in_bytes(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    told: list[tuple[int, int]] = []
    target = HubTarget(repo_id=REPO)
    publishing.publish(
        artifacts,
        "x4",
        target,
        endpoint=hub.url,
        token="hf_alice",
        on_bytes=lambda done, total: told.append((done, total)),
    )
    published = files(hub, head(hub)).values()
    total = sum(len(file.data) for file in published)
    large = (artifacts / "x4" / "model.safetensors").stat().st_size
    assert told == [(large, total), (total, total)]


KILLED = """
import os, signal, sys
from pathlib import Path
from known_core.publish import publish
from known_core.spec import HubTarget

def die(done, total):
    os.kill(os.getpid(), signal.SIGKILL)

artifacts, endpoint, repo_id = sys.argv[1:]
publish(Path(artifacts), "x4", HubTarget(repo_id=repo_id), endpoint=endpoint, token="hf_alice", on_bytes=die)
"""


@pytest.mark.slow
def test_who_was_killed_half_way_sends_the_rest(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    second = artifacts / "x4" / "other.safetensors"
    second.write_bytes(os.urandom(2_000_000))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment["HF_HUB_DISABLE_XET"] = "1"
    command = [sys.executable, "-c", KILLED, str(artifacts), hub.url, REPO]
    killed = subprocess.run(command, env=environment, timeout=120, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert files(hub, head(hub)) == {}  # nothing half visible
    first = sent(hub, "PUT", "/lfs/")
    assert {line.split("/")[2] for line in first} == {sha256_file(artifacts / "x4" / "model.safetensors")}
    publish()
    later = {line.split("/")[2] for line in sent(hub, "PUT", "/lfs/")[len(first) :]}
    assert later >= {sha256_file(second)}
    assert not later & {line.split("/")[2] for line in first}
    assert files(hub, head(hub)).keys() >= {"model.safetensors", "other.safetensors"}


def test_files_of_a_clone_or_a_download_are_left_out(hub: LocalHub, publish: Publish, artifacts: Path) -> None:
    for name in (".git/config", ".cache/huggingface/x.metadata"):
        (artifacts / "x4" / name).parent.mkdir(parents=True)
        (artifacts / "x4" / name).write_text("x")
    assert not [name for name in files(hub, publish().commit) if name.startswith(".")]


def test_the_token_is_in_no_message(
    hub: LocalHub, publish: Publish, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "hf_canary7d1c"
    caplog.set_level("DEBUG")
    for user, fault in (("nobody", None), ("alice", Fault("PUT", "/lfs/", 403)), ("alice", Fault("POST", "/commit/"))):
        hub.users = {canary: user} if fault else {}
        hub.faults = [fault] if fault else []
        try:
            done = repr(publish(token=canary))
        except KnownError as error:
            done = f"{error} {error!r} {error.__cause__} {error.__cause__!r}"
        assert canary not in done
    assert canary not in caplog.text
    assert canary not in str([read_json(artifacts / name) for name in ("report.json", "manifest.json")])


def test_a_stranger_in_the_repository_is_asked_for_nothing(hub: LocalHub, publish: Publish) -> None:
    """A token stored on the machine is never used in place of none."""
    repo: Repo = hub.add("models", REPO, {"config.json": b"{}"}, private=True)
    with pytest.raises(KnownError):
        publish(token="")
    assert len(repo.commits) == 2
