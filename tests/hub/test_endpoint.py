"""The Hub that a token goes to is the operator's choice: no repository's name changes it, and no redirect."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from pydantic import ValidationError

from app.jobs.schemas import EnhanceRequest
from known_core.errors import KnownError
from known_core.hub import Hub, HubRef
from tests.hub.server import LocalHub

Client = Callable[[str | None], HfApi]


@pytest.mark.parametrize("repo_id", [
    "https://evil.example/user/x", "http://127.0.0.1:8080/user/x", "//evil.example/x", "ftp://evil.example/x",
    "hf.co/user/x", "hf.co/x", "huggingface.co/x", "https://huggingface.co/user/x", "evil.example/user/x",
    "127.0.0.1:8080/x", "localhost:8080/user/x", "HTTPS://evil.example/x", "user@evil.example/user/x",
])  # fmt: skip
def test_a_repository_with_a_host_is_refused(repo_id: str) -> None:
    with pytest.raises(KnownError, match="endpoint_not_allowed"):
        HubRef(repo_id)


@pytest.mark.parametrize("repo_id", ["../x", "a/../x", "a/b/c", "/x", "x/", "a//b", "a b", "a\\b", "", "a/b.git", "."])
def test_what_is_no_repository_is_refused(repo_id: str) -> None:
    with pytest.raises(KnownError, match="repo_id_invalid"):
        HubRef(repo_id)


@pytest.mark.parametrize("repo_id", ["user/x", "user/x.y", "gpt2", "user-1/x_2", "01.ai/yi"])
def test_repositories_are_taken(repo_id: str) -> None:
    assert HubRef(repo_id).repo_id == repo_id


def test_a_request_cannot_name_an_endpoint() -> None:
    state = {"hub": {"repo_id": "user/x"}}
    for place in ("endpoint", "url", "host"):
        for asked in (
            {"trajectory": [{"hub": {**state["hub"], place: "https://evil.example"}}, *[state] * 4]},
            {"trajectory": [state] * 5, "output": {"hub": {"repo_id": "user/y", place: "https://evil.example"}}},
            {"trajectory": [state] * 5, place: "https://evil.example"},
        ):
            with pytest.raises(ValidationError, match=f"{place}\n  Extra inputs"):
                EnhanceRequest.model_validate(asked)
    EnhanceRequest.model_validate({"trajectory": [state] * 5})


def test_a_hub_that_redirects_elsewhere_takes_no_token_along(
    hub: LocalHub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API, the listing and a file, each sent to another host: it is asked, and without the token."""
    files = {"config.json": b"{}", "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}
    with LocalHub({"hf_alice": "alice"}) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        for server in (hub, other):
            server.add("models", "alice/public", files)
        client("alice")
        access = Hub(hub.url, "hf_alice", tmp_path / "cache", 1 << 30)
        ref = access.resolve(HubRef("alice/public"))
        assert hub.tokens == {"hf_alice"}
        hub.redirects = {"GET /api/": elsewhere}
        assert access.resolve(HubRef("alice/public")).revision == ref.revision
        hub.redirects = {"HEAD /alice/public/resolve/": elsewhere}
        monkeypatch.setattr("known_core.hub.errors.WAITS_S", ())
        with pytest.raises(KnownError, match="hub_unreachable"):
            access.fetch(ref, tmp_path / "in", ["config.json"], lambda done, total: None)
        hub.redirects = {"GET /alice/public/resolve/": elsewhere}
        access.fetch(ref, tmp_path / "in", ["config.json", "model.safetensors"], lambda done, total: None)
        assert (tmp_path / "in" / "config.json").read_bytes() == b"{}"
        assert any("/api/models/alice/public" in line for line in other.requests)
        assert any("/resolve/" in line for line in other.requests)
        assert other.tokens == set()
        sent = httpx2.get(
            f"{other.url}/api/whoami-v2", headers={"Authorization": "Bearer hf_alice"}
        )  # it would be seen
        assert sent.status_code == 200
        assert other.tokens == {"hf_alice"}
