"""A request for a job, from what people have at hand: paths, ``hub:user/name``, settings by their names."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from known_core.client import errors
from known_core.client.steps import Steps
from known_core.spec import (
    EvaluationSettings,
    ForgettingSettings,
    NowcastSettings,
    OutputSettings,
    Settings,
)

Input = str | Path | Mapping[str, Any]  # a path, "hub:user/name[@revision]", or the API's form with "path" for a file
Upload = Callable[[Path], Steps[str]]

_SECTIONS: dict[str, type[Settings]] = {
    "forgetting": ForgettingSettings,
    "nowcast": NowcastSettings,
    "evaluation": EvaluationSettings,
    "output": OutputSettings,
}
SECTION_OF = {name: section for section, kind in _SECTIONS.items() for name in kind.model_fields if name != "hub"} | {
    "max_gpu_seconds": "limits",
}
_WHOLE = (*_SECTIONS, "device", "limits", "webhook", "metadata", "task")


def hub_reference(given: str) -> dict[str, Any]:
    """``hub:user/name[@revision]`` in the API's form."""
    repo_id, at, revision = given.removeprefix("hub:").partition("@")
    return {"repo_id": repo_id, **({"revision": revision} if at else {})}


def sort_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their own names, each in its section: ``epochs_per_stage=4`` is ``forgetting.epochs_per_stage``.

    Whole sections are taken as they are, and ``push`` is ``output.hub``.

    Raises:
        KnownError: ``option_invalid``, naming the setting that is nearest.
    """
    request: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _WHOLE:
            request = _over({name: value}, request)
        elif name == "push":
            target = hub_reference(value) if isinstance(value, str) else dict(value)
            request = _over(request, {"output": {"hub": target}})
        elif name in SECTION_OF:
            request = _over(request, {SECTION_OF[name]: {name: value}})
        else:
            near = difflib.get_close_matches(name, [*_WHOLE, "push", "downstream", *SECTION_OF], 1)
            hint = f"Did you mean {near[0]}?" if near else "docs/api.md lists them."
            raise errors.problem("option_invalid", f"there is no setting {name!r}", hint)
    return request


@dataclass(frozen=True)
class Wanted:
    """A job as a caller says it.

    Args:
        request: the API's own, to begin with; everything else goes over it.
        settings: see :func:`sort_settings`.
    """

    request: Mapping[str, Any] | None = None
    model: Input | None = None
    dataset: Input | None = None
    trajectory: Sequence[Input] | None = None
    downstream: Input | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def build_request(upload: Upload, wanted: Wanted) -> Steps[dict[str, Any]]:
    """The API's request; what is a file is uploaded on the way. Args: upload: how a file becomes an upload's id."""
    request: dict[str, Any] = _over(wanted.request or {}, sort_settings(wanted.settings))
    for name, given in (("model", wanted.model), ("dataset", wanted.dataset)):
        if given is not None:
            request = _over(request, {name: (yield from bring(upload, given))})
    if wanted.downstream is not None:
        before = (request.get("evaluation") or {}).get("downstream") or {}
        brought = {**before, **(yield from bring(upload, wanted.downstream))}
        request = _over(request, {"evaluation": {"downstream": brought}})
    if wanted.trajectory is not None:
        states = []
        for state in wanted.trajectory:
            states.append((yield from bring(upload, state)))
        request["trajectory"] = states
    return request


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both requests in one, section by section; what is above counts."""
    whole = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(whole.get(name), Mapping)
        whole[name] = {**whole[name], **value} if both else value
    return whole


def bring(upload: Upload, given: Input) -> Steps[dict[str, Any]]:
    """An input in the API's form; a file or a folder is uploaded."""
    if isinstance(given, str) and given.startswith("hub:"):
        return {"hub": hub_reference(given)}
    if isinstance(given, str | Path):
        return {"upload_id": (yield from upload(Path(given)))}
    whole = dict(given)
    if "path" in whole:
        whole |= yield from bring(upload, whole.pop("path"))
    if isinstance(whole.get("hub"), str):
        whole["hub"] = hub_reference(whole["hub"])
    if whole.get("base") is not None:
        whole["base"] = yield from bring(upload, whole["base"])
    return whole
