"""Every failure of the Hub as a :class:`KnownError` with its remedy; what may pass is tried again.

The client's errors hold the request, and with it the token and signed addresses: they are not chained to ours.
"""

import errno
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from known_core.errors import KnownError
from known_core.hub.ref import HubRef, repo_id_invalid

T = TypeVar("T")

WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each repetition of what may pass
_NO_CONNECTION = (ConnectionError, TimeoutError, socket.gaierror, FileMetadataError)


@contextmanager
def hub_errors(ref: HubRef) -> Iterator[None]:
    """Whatever huggingface_hub raises inside becomes a :class:`KnownError` that names the repository and the remedy.

    Raises:
        KnownError: ``hub_gated``, ``hub_not_found``, ``hub_revision_not_found``, ``hub_file_missing``,
            ``hub_token_refused``, ``hub_forbidden``, ``hub_head_moved``, ``hub_refused``, ``hub_rate_limited``,
            ``hub_unreachable``, ``hub_offline``, ``repo_id_invalid``, ``disk_full``.
    """
    try:
        yield
    except HFValidationError:
        raise repo_id_invalid(ref.repo_id) from None
    except (httpx2.HTTPError, OSError, XetDownloadError, ValueError, RuntimeError) as error:
        known = _translated(error, ref)
        if known is None:
            raise
        raise known from None


def _translated(error: BaseException, ref: HubRef) -> KnownError | None:
    repo = f"the {ref.kind} {ref.label}"
    match error:
        case LocalEntryNotFoundError() if error.__cause__ is not None:  # why the client then looked into its cache
            return _translated(error.__cause__, ref)
        case json.JSONDecodeError():
            return unreachable(repo, "it answers with something else than JSON")
        case OfflineModeIsEnabled():
            return KnownError(
                "hub_offline", f"{repo} is not reached: HF_HUB_OFFLINE is set", "Unset it, or give files instead."
            )
        case GatedRepoError():
            return KnownError(
                "hub_gated",
                f"{repo} is gated, and this access does not open it",
                "Ask for access on its page, then give a token of the account that was granted it.",
            )
        case RepositoryNotFoundError() | DisabledRepoError():
            return KnownError(
                "hub_not_found",
                f"{repo} is not there, or not for this access",
                "Check the id. If it is private, give a token with read access to it.",
            )
        case RevisionNotFoundError():
            return KnownError(
                "hub_revision_not_found",
                f"{repo}: there is no such revision",
                "Give a branch, a tag, refs/pr/N or a commit of this repository.",
            )
        case RemoteEntryNotFoundError():
            return KnownError("hub_file_missing", f"{repo}: a file is not there", "Check its files at this revision.")
        case HfHubHTTPError():
            return _refused(error, repo)
        case ValueError() | RuntimeError():  # what the client wraps an error of an upload in
            return None if error.__cause__ is None else _translated(error.__cause__, ref)
        case OSError(errno=errno.ENOSPC):
            return disk_full(f"the disk filled up while {ref.label} was fetched")
        case OSError() if error.errno is not None and not isinstance(error, _NO_CONNECTION):
            return None  # the file system's, not the Hub's
        case _:
            return unreachable(repo, type(error).__name__)


def _refused(error: HfHubHTTPError, repo: str) -> KnownError:
    status = error.response.status_code
    if status == 401:
        return KnownError(
            "hub_token_refused", f"{repo}: the Hub does not take the token", "Give one that has not been revoked."
        )
    if status == 403:
        return KnownError(
            "hub_forbidden",
            f"{repo}: the token has no right to this",
            "Give a token with write access to this repository's owner, or read access where nothing is written.",
        )
    if status == 404:
        return KnownError("hub_not_found", f"{repo} is not there", "Check the id and the endpoint.")
    if status == 412:
        return head_moved(repo)
    if status == 429:
        return KnownError(
            "hub_rate_limited",
            f"{repo}: the Hub asks to slow down",
            "Try again in five minutes; a token has a higher limit than none.",
            retryable=True,
        )
    if status >= 500 or status == 408:
        return unreachable(repo, f"status {status}")
    return KnownError(
        "hub_refused",
        f"{repo}: the Hub refused with status {status}: {_message(error)[:300]}",
        "Its message says what to change.",
    )


def _message(error: HfHubHTTPError) -> str:
    """What the server says, without the token in case it repeats what it was sent."""
    token = error.response.request.headers.get("authorization", "").removeprefix("Bearer ")
    message = error.server_message or ""
    return message.replace(token, "…") if token else message


def head_moved(repo: str, *, retryable: bool = False) -> KnownError:
    """Returns: the error that says so; nothing was changed."""
    return KnownError(
        "hub_head_moved",
        f"{repo} has commits after the one that was expected",
        "Look at them, then name the newest as parent_commit, or none.",
        retryable=retryable,
    )


def unreachable(repo: str, reason: str) -> KnownError:
    """Returns: the error that says so."""
    return KnownError(
        "hub_unreachable",
        f"{repo}: the Hub does not answer as it should ({reason})",
        "Check the connection and https://status.huggingface.co, then try again.",
        retryable=True,
    )


def disk_full(message: str) -> KnownError:
    """Returns: the error that says so; the cache keeps what has arrived."""
    return KnownError("disk_full", message, "Free space and run it again: what has arrived is kept.", retryable=True)


def patiently(ref: HubRef, call: Callable[[], T]) -> T:
    """What ``call`` returns, called again after a while when the Hub is down or asks to slow down.

    The client repeats some requests by itself, but neither a GET that is answered by 5xx nor the routes of its API.
    """
    for wait_s in WAITS_S:
        try:
            with hub_errors(ref):
                return call()
        except KnownError as error:
            if not error.retryable or error.code not in ("hub_unreachable", "hub_rate_limited", "hub_head_moved"):
                raise
        time.sleep(wait_s)
    with hub_errors(ref):
        return call()
