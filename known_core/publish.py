"""A job's result as a repository on the Hugging Face Hub: the candidate's files, its model card, report and manifest.

Everything becomes visible in one commit. Large files are sent before it, one by one, and the Hub keeps them by their
sha256: whoever publishes again, after an error or a kill, sends only what is missing, and commits only what differs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from known_core.card import draw_pictures, render_card
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.hub import HubRef
from known_core.hub.errors import head_moved, patiently
from known_core.hub.ref import repo_id_invalid
from known_core.report import render_markdown
from known_core.spec import HubTarget

_ALONE_BYTES = 1 << 20  # files from this size on are sent one by one, so that progress can be told
_LOCAL_FOLDERS = {".git", ".cache"}  # of a clone or a download; the Hub takes no files in them
_WEIGHTS = re.compile(r"(.*?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")  # 1: the name without its shard
_PULLS_LOOKED_AT = 20  # newest pull requests that may be this very one


@dataclass(frozen=True)
class Publication:
    """What is on the Hub now."""

    url: str  # of the repository
    commit: str  # 40 hex digits
    pr_url: str | None
    repo_id: str


def check_target(target: HubTarget, *, endpoint: str | None, token: str | None) -> None:
    """Check, before a job begins, what can be known of where its result goes.

    Raises:
        KnownError: ``repo_id_invalid``, ``hub_token_missing``, ``hub_token_refused``, ``hub_repo_public``.
    """
    if "/" not in target.repo_id:
        raise repo_id_invalid(target.repo_id)
    if token is None:
        raise KnownError(
            "hub_token_missing",
            f"nothing can be put into {target.repo_id} without a token",
            "Send one with write access (X-Hub-Token, --token), or have the operator set KNOWN_HUB_TOKEN.",
        )
    api = HfApi(endpoint=endpoint, token=token)

    def look() -> None:
        api.whoami()
        try:
            info = api.model_info(target.repo_id)
        except RepositoryNotFoundError:
            return
        _check_private(target, info.private)

    patiently(HubRef(target.repo_id), look)


def publish(
    artifacts: Path,
    candidate: str,
    target: HubTarget,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Publication:
    """Put one candidate on the Hub; what is there already is not sent again.

    Args:
        artifacts: folder of a job's result, as :func:`known_core.pipeline.run` returns it.
        candidate: name of a folder in it.
        target: where it goes.
        endpoint: of the Hub, ``https://...``; None is huggingface.co, or what HF_ENDPOINT says.
        token: with write access; a token stored on this machine is never used.
        on_bytes: called with bytes sent and bytes in all, after each large file and at the end.

    Returns:
        The commit made, or the one that holds the same files already.

    Raises:
        KnownError: ``repo_id_invalid``, ``candidate_unknown``, ``hub_repo_public``, and what
            :func:`~known_core.hub.hub_errors` names; what may pass was tried several times.
    """
    if "/" not in target.repo_id:
        raise repo_id_invalid(target.repo_id)
    api = HfApi(endpoint=endpoint, token=token or False)

    def attempt() -> Publication:
        return _publish(api, _additions(artifacts, candidate, target.repo_id), candidate, target, on_bytes)

    with disable_progress_bars():
        return patiently(HubRef(target.repo_id, target.revision), attempt)


def _publish(
    api: HfApi,
    additions: list[CommitOperationAdd],
    candidate: str,
    target: HubTarget,
    on_bytes: Callable[[int, int], None],
) -> Publication:
    repo_id, branch = target.repo_id, target.revision or "main"
    head = _open_repository(api, target)
    there = _files_at(api, repo_id, head)
    new = [addition for addition in additions if not _is_there(addition, there)]
    stale = list(_stale(there, {addition.path_in_repo for addition in additions}))
    url = f"{api.endpoint}/{repo_id}"
    if not new and not stale:
        return Publication(url, head, None, repo_id)
    if target.create_pr:
        for number, commit in _newest_pulls(api, repo_id):
            pull = _files_at(api, repo_id, commit)
            if all(_is_there(addition, pull) for addition in additions):
                return Publication(url, commit, f"{url}/discussions/{number}", repo_id)
    elif target.parent_commit not in (None, head):
        raise head_moved(f"the model {repo_id}")
    total = sum(addition.upload_info.size for addition in new)
    _send_large_files(api, new, target, lambda sent: on_bytes(sent, total))
    try:
        commit = api.create_commit(
            repo_id,
            [*new, *(CommitOperationDelete(path, is_folder=False) for path in stale)],
            commit_message=target.commit_message or f"{candidate}, made with known",
            revision=branch,
            create_pr=target.create_pr,
            parent_commit=target.parent_commit,
        )
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        raise head_moved(f"the model {repo_id}", retryable=target.parent_commit is None) from None
    on_bytes(total, total)
    return Publication(url, commit.oid, commit.pr_url, repo_id)


def _additions(artifacts: Path, candidate: str, repo_id: str) -> list[CommitOperationAdd]:
    """Every file of the repository: the candidate's own, then what known says of them, which replaces the former."""
    folder, base_card = artifacts / candidate, None
    if not folder.is_dir():
        raise KnownError("candidate_unknown", f"the result has no {candidate!r}", "Name a folder of its artifacts.")
    report, manifest = _without_sample(read_json(artifacts / "report.json")), read_json(artifacts / "manifest.json")
    content: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _LOCAL_FOLDERS & set(path.relative_to(folder).parts)
    }
    if "README.md" in content:
        base_card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        content["known/base-model-card.md"] = folder / "README.md"
    card = render_card(report, manifest, candidate=candidate, target_repo=repo_id, base_card=base_card)
    content["README.md"] = card.encode()
    content["known/manifest.json"] = artifacts / "manifest.json"
    content["known/report.json"] = (json.dumps(report, indent=2) + "\n").encode()
    content["known/report.md"] = render_markdown(report).encode()
    content |= draw_pictures(report)
    return [CommitOperationAdd(path, data) for path, data in content.items()]


def _without_sample(report: dict[str, Any]) -> dict[str, Any]:
    """The report without excerpts of the training data: who may read the weights may not always read these."""
    return {**report, "inputs": {name: value for name, value in report["inputs"].items() if name != "sample"}}


def _open_repository(api: HfApi, target: HubTarget) -> str:
    """The commit its branch is at; the repository is made where it is missing."""
    try:
        info = api.model_info(target.repo_id, revision=target.revision)
    except RepositoryNotFoundError:
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        info = api.model_info(target.repo_id, revision=target.revision)
    _check_private(target, info.private)
    return str(info.sha)


def _check_private(target: HubTarget, private: bool | None) -> None:
    if target.private and not private:
        raise KnownError(
            "hub_repo_public",
            f"{target.repo_id} is there already, and everybody can read it",
            'Make it private in its settings, name another repository, or ask for "private": false.',
        )


def _files_at(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """The files of a commit, and the hash the Hub names each by: sha256 where it is in LFS, else git's."""
    entries = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}


def _is_there(addition: CommitOperationAdd, there: dict[str, str]) -> bool:
    oid = there.get(addition.path_in_repo)
    if oid is None or len(oid) == hashlib.sha256().digest_size * 2:
        return oid == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        data = file.read()
    return oid == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _stale(there: Iterable[str], additions: set[str]) -> Iterator[str]:
    """Files of an earlier publication: in known/, and the same weights in other shards, which a loader might prefer."""
    weights = {match[1] for path in additions if (match := _WEIGHTS.fullmatch(path))}
    for path in set(there) - additions:
        match = _WEIGHTS.fullmatch(path)
        if PurePath(path).parts[0] == "known" or (match and match[1] in weights):
            yield path


def _newest_pulls(api: HfApi, repo_id: str) -> list[tuple[int, str]]:
    """Numbers and commits of pull requests, open or closed."""
    pulls = api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
    numbered = [(int(pull.ref.rpartition("/")[2]), pull.target_commit) for pull in pulls]
    return sorted(numbered, reverse=True)[:_PULLS_LOOKED_AT]


def _send_large_files(
    api: HfApi, additions: list[CommitOperationAdd], target: HubTarget, on_bytes: Callable[[int], None]
) -> None:
    sent = 0
    for addition in additions:
        if addition.upload_info.size >= _ALONE_BYTES:
            api.preupload_lfs_files(
                target.repo_id, [addition], revision=target.revision, create_pr=target.create_pr, free_memory=False
            )
            sent += addition.upload_info.size
            on_bytes(sent)
