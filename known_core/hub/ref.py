"""What a repository is called. Nothing here contacts anything."""

import re
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from known_core.errors import KnownError

RepoKind = Literal["model", "dataset"]
_HOST = re.compile(  # a URL; a port or a user; a name with a dot before user/name; the Hub's own names
    r"(?:[a-z][a-z0-9+.-]*:)?//|[^/]*(?::[0-9]+|@[^/]*)/|[^/]+\.[^/.]+/[^/]+/[^/]+|(?:www\.)?(?:huggingface\.co|hf\.co)/",
    re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*\.\.)[^\s~^:?*\[\\\x00-\x1f\x7f]{1,255}")  # what git takes as a name, nearly


@dataclass(frozen=True)
class HubRef:
    """A repository on the Hub at a revision: a branch, a tag, ``refs/pr/1``, a commit; None is main.

    Raises:
        KnownError: ``repo_id_invalid``; ``endpoint_not_allowed`` for an id with a host; ``hub_revision_not_found`` for
            what cannot be the name of a revision.
    """

    repo_id: str
    revision: str | None = None
    kind: RepoKind = "model"

    def __post_init__(self) -> None:
        if _HOST.match(self.repo_id):
            raise KnownError(
                "endpoint_not_allowed",
                f"{self.repo_id[:120]!r} names a host; the Hub is the one this service is set up with",
                "Give the repository alone: user/name.",
            )
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
