"""What a repository is called, and which Hubs may be asked for it. Nothing here contacts anything."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from known_core.errors import KnownError

RepoKind = Literal["model", "dataset"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*\.\.)[^\s~^:?*\[\\\x00-\x1f\x7f]{1,255}")  # what git takes as a name, nearly


@dataclass(frozen=True)
class HubRef:
    """A repository on the Hub at a revision: a branch, a tag, ``refs/pr/1``, a commit; None is main.

    Raises:
        KnownError: ``repo_id_invalid``, ``hub_revision_not_found`` for what cannot be the name of a revision.
    """

    repo_id: str
    revision: str | None = None
    kind: RepoKind = "model"

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise repo_id_invalid(self.repo_id) from error
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise KnownError(
                "hub_revision_not_found",
                f"{self.revision[:120]!r} cannot be the name of a revision",
                "Give a branch, a tag, refs/pr/N or a commit.",
            )

    @classmethod
    def parse(cls, text: str, kind: RepoKind = "model") -> "HubRef":
        """Read ``hub:user/name@revision``; the beginning ``hub:`` and the revision may be left out.

        Raises:
            KnownError: ``repo_id_invalid``, ``hub_revision_not_found``.
        """
        repo_id, at, revision = text.removeprefix("hub:").partition("@")
        return cls(repo_id, revision if at else None, kind)

    @property
    def label(self) -> str:
        """For people: ``user/name@abcdef12``."""
        if self.revision is None:
            return self.repo_id
        return f"{self.repo_id}@{self.revision[:8] if self.resolved else self.revision}"

    @property
    def resolved(self) -> bool:
        """Whether the revision is a whole commit id, so that it always means the same files."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def repo_id_invalid(repo_id: str) -> KnownError:
    """Returns: the error that says so."""
    return KnownError(
        "repo_id_invalid", f"{repo_id[:120]!r} is not the id of a repository", "Give it as on its page: user/name."
    )


def check_endpoint(endpoint: str, allowed: Sequence[str]) -> None:
    """Check that a Hub's address is one of those the operator allows, so that nobody makes us call another host.

    Raises:
        KnownError: ``endpoint_not_allowed``.
    """
    if _address(endpoint) not in {_address(one) for one in allowed} - {None}:
        raise KnownError(
            "endpoint_not_allowed",
            f"the Hub endpoint {endpoint[:120]!r} is not allowed here",
            f"Allowed: {', '.join(allowed) or 'none'}. The operator can add others.",
        )


def _address(url: str) -> tuple[str, str, int | None, str] | None:
    """The parts of a plain http(s) address that count, or None."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        return None
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")
