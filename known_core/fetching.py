"""A job's inputs on the Hub: resolved and looked into before it is queued, fetched before it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from known_core.checkpoint.source import Source
from known_core.data import inspect_data
from known_core.data.sampling import sample_names, sample_tables
from known_core.errors import KnownError
from known_core.files import atomic_folder, read_json, write_json
from known_core.hub import Hub, HubRef
from known_core.inputs import open_sources, pointer_of, pointing_at, resolve_task
from known_core.models.config import ADAPTER_CONFIG, read_fields
from known_core.models.opening import open_network
from known_core.spec import JobSpec

Refs = Mapping[str, HubRef]  # by the name of the input, as known_core.inputs names them
_DATA = {"dataset": "data", "downstream": "downstream_data"}  # an input, and the field of the spec with its settings


def resolve_refs(hub: Hub, wanted: Mapping[str, tuple[str, str | None]]) -> dict[str, HubRef]:
    """The commit of each input, and of the base model that an adapter names where none is given.

    Args:
        wanted: repository and revision by input.

    Raises:
        KnownError: what :func:`~known_core.hub.hub_errors` names, pointing at the request's field.
    """
    refs: dict[str, HubRef] = {}
    for name, (repo_id, revision) in wanted.items():
        with pointing_at(f"{pointer_of(name)}/hub"):
            refs[name] = hub.resolve(HubRef(repo_id, revision, "dataset" if name in _DATA else "model"))
    if "model" in refs and "base" not in refs:
        with pointing_at("/model/hub"):
            source = hub.source(refs["model"])
            if ADAPTER_CONFIG in source.names():
                fields = read_fields(source, ADAPTER_CONFIG, "config_invalid")
                base = _repository_of(fields.get("base_model_name_or_path"), fields.get("revision"))
                if base is not None:
                    refs["base"] = hub.resolve(base)
    return refs


def _repository_of(named: Any, revision: Any) -> HubRef | None:
    """The repository an adapter's config names; None where it names a folder of whoever trained it."""
    try:
        return HubRef(named, revision) if isinstance(named, str) and isinstance(revision, str | None) else None
    except KnownError:
        return None


def open_all(spec: JobSpec, hub: Hub, refs: Refs) -> dict[str, Source]:
    """Every input of a job, those on the Hub as they are there.

    Raises:
        KnownError: what opening them raises, pointing at the request's field.
    """
    sources: dict[str, Source] = dict(open_sources(spec, without=refs))
    for name, ref in refs.items():
        with pointing_at(f"{pointer_of(name)}/hub"):
            sources[name] = hub.source(ref)
    return sources


def origins(refs: Refs) -> dict[str, Any]:
    """Where inputs came from, as a report and a manifest say it."""
    return {name: {"hub": {"repo_id": ref.repo_id, "revision": ref.revision}} for name, ref in refs.items()}


def fetch_inputs(
    spec: JobSpec,
    hub: Hub,
    refs: Refs,
    folder: Path,
    *,
    max_dataset_bytes: int,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> JobSpec:
    """Put the inputs that are on the Hub into ``folder/NAME``: only the files that are needed, checked and whole.

    A data set of more than ``max_dataset_bytes``, or with ``max_examples`` set, is streamed, and a seeded sample of it
    kept.

    Args:
        on_bytes: bytes so far, and of all that is known of.

    Returns:
        The spec, with what was sampled in ``origins``.

    Raises:
        KnownError: what :func:`~known_core.hub.hub_errors` and :func:`~known_core.inputs.inspect_inputs` name.
    """
    sources = open_all(spec, hub, refs)
    plans = [_plan(name, spec, hub, refs[name], sources, max_dataset_bytes) for name in refs]
    total, before = sum(plan.size for plan in plans), 0
    for name, plan in zip(refs, plans, strict=True):

        def on_part(done: int, of: int, before: int = before) -> None:
            on_bytes(min(before + done, total), total)

        with pointing_at(f"{pointer_of(name)}/hub"):
            if not (folder / name).is_dir():
                with atomic_folder(folder / name) as temporary:
                    write_json(folder / f"{name}.json", plan.work(temporary, on_part))
        if sample := read_json(folder / f"{name}.json"):
            spec = _sampled(spec, name, sample)
        before += plan.size
        on_bytes(before, total)
    return spec


OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class _Plan:
    """What is to be brought: ``size`` bytes, by ``work``, which says what was sampled."""

    size: int
    work: Callable[[Path, OnBytes], dict[str, Any]]


def _plan(
    name: str, spec: JobSpec, hub: Hub, ref: HubRef, sources: Mapping[str, Source], max_dataset_bytes: int
) -> _Plan:
    source, seed = sources[name], spec.forgetting.seed

    def whole(names: Sequence[str], facts: dict[str, Any]) -> _Plan:
        def work(target: Path, on_bytes: OnBytes) -> dict[str, Any]:
            hub.fetch(ref, target, names, on_bytes)
            return facts

        return _Plan(sum(source.size(file) for file in names), work)

    if name not in _DATA:
        return whole(source.names(), {})
    task, settings = resolve_task(spec, sources), getattr(spec, _DATA[name])
    network = open_network(task.network, sources["model"], spec.config, sources.get("base"), None)
    roles = task.roles(network)
    with pointing_at(pointer_of(name)):
        files = inspect_data(source, roles, settings)
    names = [*files.train_split.files, *files.test_split.files]
    size = sum(source.size(file) for file in names)
    if size <= max_dataset_bytes and settings.max_examples is None:
        return whole([*names, *(file for file in ("README.md",) if file in source.names())], {})
    if files.format == "imagefolder":
        names, facts = sample_names(source, roles, settings, max_bytes=max_dataset_bytes, seed=seed)
        return whole(names, {**facts, "max_bytes": max_dataset_bytes})

    def sample(target: Path, on_bytes: OnBytes) -> dict[str, Any]:
        facts = sample_tables(
            source, roles, settings, target, max_bytes=max_dataset_bytes, seed=seed, on_bytes=on_bytes
        )
        return {**facts, "max_bytes": max_dataset_bytes}

    return _Plan(min(size, max_dataset_bytes), sample)


def _sampled(spec: JobSpec, name: str, facts: dict[str, Any]) -> JobSpec:
    """With what of a data set was kept, for the report and to sample it again."""
    origin = {**spec.origins.get(name, {}), "sample": facts}
    return spec.model_copy(update={"origins": {**spec.origins, name: origin}})
