"""The local Hub, and the official client on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tests.hub.server import LocalHub

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub(TOKENS, multipart_bytes=6_000_000) as running:
        yield running


@pytest.fixture
def client(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str | None], HfApi]:
    """The official client as a user, or as nobody; its cache is the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # tests/conftest.py sets it for all others
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return lambda user: HfApi(endpoint=hub.url, token=f"hf_{user}" if user else False)
