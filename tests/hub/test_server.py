"""That the local Hub is one to huggingface_hub: every test drives the official client over HTTP."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from tests.hub.server import Fault, File, LocalHub

# huggingface_hub's multipart upload uses an old parameter of its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
Client = Callable[[str | None], HfApi]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint with files beside the weights."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file({"w": torch.arange(2_000_000, dtype=torch.float32)}, folder / "model.safetensors")  # 8 MB: two parts
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes with spaces.txt").write_text("ü")
    return folder


def test_who_am_i(client: Client) -> None:
    assert client("alice").whoami()["name"] == "alice"
    with pytest.raises(HfHubHTTPError) as caught:
        client("mallory").whoami()
    assert caught.value.response.status_code == 401


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_a_folder_goes_up_and_comes_down(client: Client, folder: Path, tmp_path: Path, repo_type: str) -> None:
    alice = client("alice")
    alice.create_repo("alice/new", repo_type=repo_type, private=True)
    assert alice.repo_info("alice/new", repo_type=repo_type).private
    commit = alice.upload_folder(repo_id="alice/new", folder_path=folder, repo_type=repo_type)
    assert set(alice.list_repo_files("alice/new", repo_type=repo_type)) == {
        "model.safetensors", "config.json", "sub/notes with spaces.txt"
    }  # fmt: skip
    assert alice.repo_info("alice/new", repo_type=repo_type).sha == commit.oid
    copy = Path(alice.snapshot_download("alice/new", repo_type=repo_type, local_dir=tmp_path / "copy"))
    assert torch.equal(load_file(copy / "model.safetensors")["w"], torch.arange(2_000_000, dtype=torch.float32))
    assert (copy / "sub" / "notes with spaces.txt").read_text() == "ü"
    assert copy.joinpath("config.json").read_text() == "{}"


def test_large_files_go_through_lfs_in_parts_and_once(client: Client, hub: LocalHub, folder: Path) -> None:
    alice = client("alice")
    alice.create_repo("alice/new")
    alice.upload_folder(repo_id="alice/new", folder_path=folder)
    (file,) = [row for row in alice.list_repo_tree("alice/new") if row.path == "model.safetensors"]
    assert file.lfs is not None  # type: ignore[union-attr]
    puts = [line for line in hub.requests if line.startswith("PUT /lfs/")]
    assert len(puts) == 2
    alice.create_repo("alice/second")
    alice.upload_folder(repo_id="alice/second", folder_path=folder)
    assert [line for line in hub.requests if line.startswith("PUT /lfs/")] == puts  # the Hub had the bytes


def test_an_existing_repository(client: Client, hub: LocalHub) -> None:
    hub.add("models", "alice/old", {"config.json": b"{}"})
    alice = client("alice")
    with pytest.raises(HfHubHTTPError) as caught:
        alice.create_repo("alice/old")
    assert caught.value.response.status_code == 409
    assert alice.create_repo("alice/old", exist_ok=True).repo_id == "alice/old"
    with pytest.raises(HfHubHTTPError) as caught:
        alice.create_repo("bob/mine")
    assert caught.value.response.status_code == 403


def test_revisions_stay_what_they_were(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    repo = hub.add("models", "alice/m", {"config.json": b"1"})
    old = repo.refs["main"]
    repo.refs["v1"] = old
    repo.commit("main", "second", {"config.json": File(b"2")})
    api = client(None)
    for revision, content in ((None, "2"), ("main", "2"), ("v1", "1"), (old, "1")):
        path = api.hf_hub_download("alice/m", "config.json", revision=revision, cache_dir=tmp_path / "c")
        assert Path(path).read_text() == content
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("alice/m", revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("alice/m", "nothing.txt", cache_dir=tmp_path / "c")


def test_a_pull_request_leaves_main_alone(client: Client, hub: LocalHub) -> None:
    hub.add("models", "alice/m", {"config.json": b"1"})
    alice = client("alice")
    main = alice.repo_info("alice/m").sha
    card, config = CommitOperationAdd("README.md", b"# card"), CommitOperationDelete("config.json")
    commit = alice.create_commit("alice/m", [card, config], commit_message="a card", create_pr=True)
    assert commit.pr_url == f"{hub.url}/alice/m/discussions/1"
    assert alice.repo_info("alice/m").sha == main
    assert alice.list_repo_files("alice/m", revision="refs/pr/1") == ["README.md"]
    assert [pull.ref for pull in alice.list_repo_refs("alice/m", include_pull_requests=True).pull_requests or []] == [
        "refs/pr/1"
    ]


def test_a_stale_parent_is_refused(client: Client, hub: LocalHub) -> None:
    repo = hub.add("models", "alice/m", {"config.json": b"1"})
    stale = repo.refs["main"]
    repo.commit("main", "somebody else's", {"config.json": File(b"2")})
    with pytest.raises(HfHubHTTPError) as caught:
        client("alice").create_commit(
            "alice/m", [CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=stale
        )
    assert caught.value.response.status_code == 412
    assert "a.txt" not in repo.commits[repo.refs["main"]].files


def test_private_and_gated_and_missing(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    hub.add("models", "alice/secret", {"config.json": b"{}"}, private=True)
    gated = hub.add("models", "alice/gated", {"config.json": b"{}"}, gated=True)
    assert client("alice").repo_info("alice/secret").private
    for user in ("bob", None):
        with pytest.raises(RepositoryNotFoundError):
            client(user).repo_info("alice/secret")
        with pytest.raises(RepositoryNotFoundError):
            client(user).repo_info("alice/nowhere")
        with pytest.raises(GatedRepoError):
            client(user).hf_hub_download("alice/gated", "config.json", cache_dir=tmp_path / "c")
    gated.granted.add("bob")
    assert Path(client("bob").hf_hub_download("alice/gated", "config.json", cache_dir=tmp_path / "c")).is_file()
    with pytest.raises(HfHubHTTPError) as caught:
        client("bob").upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="alice/gated")
    assert caught.value.response.status_code == 403


def test_faults_that_pass_are_retried(client: Client, hub: LocalHub, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4_000
    hub.add("models", "alice/m", {"model.safetensors": data})
    hub.faults += [
        Fault("HEAD", "/resolve/.*model.safetensors", 503),
        Fault("GET", "/resolve/.*model.safetensors", cut_after=300_000),
    ]
    path = client(None).hf_hub_download("alice/m", "model.safetensors", cache_dir=tmp_path / "c")
    assert Path(path).read_bytes() == data
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_an_unknown_route_is_said(hub: LocalHub, client: Client) -> None:
    with pytest.raises(HfHubHTTPError):
        client("alice").list_repo_commits("alice/m")
    assert hub.requests[-1].endswith("/commits/main")
