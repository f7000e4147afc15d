"""Reading from the Hugging Face Hub: resolve a revision, look into it, fetch its files through one shared cache."""

from known_core.hub.client import Hub, HubSource
from known_core.hub.errors import hub_errors
from known_core.hub.needed import needed_files
from known_core.hub.ref import HubRef, RepoKind

__all__ = ["Hub", "HubRef", "HubSource", "RepoKind", "hub_errors", "needed_files"]
