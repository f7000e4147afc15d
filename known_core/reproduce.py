"""A finished job run again from its manifest, and whether the result is the same.

The manifest holds every setting, the sha256 of every input, and the commits of those that came from the Hub. Inputs are
checked before anything runs; the run itself is :func:`known_core.pipeline.run`, so one that was interrupted goes on.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

import known_core
from known_core import pipeline
from known_core.errors import KnownError
from known_core.events import Emit, Reporter
from known_core.fetching import fetch_inputs
from known_core.files import canonical_json, read_json, sha256_bytes, sha256_file, sha256_tree
from known_core.hub import Hub, HubRef
from known_core.hypermodels import hypermodel_path, shipped_hypermodels
from known_core.inspection import hypermodel_of
from known_core.spec import JobSpec, paths_of

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
InputName = Annotated[str, StringConstraints(pattern=r"^(model|base|dataset|downstream|state-[0-4])$")]
State = Literal["same", "differs", "missing", "new"]
_DATA = ("dataset", "downstream")  # inputs that are data sets on the Hub; all others are models


class _Listed(BaseModel):
    path: str
    bytes: int
    sha256: Sha256


class _Hypermodel(BaseModel):
    name: str
    sha256: Sha256


class _OnHub(BaseModel):
    repo_id: str
    revision: str


class _Sample(BaseModel):
    """What was kept of a data set that was too large."""

    max_bytes: int = Field(ge=1)


class _Origin(BaseModel):
    hub: _OnHub | None = None
    sample: _Sample | None = None


_ORIGINS = TypeAdapter(dict[str, _Origin])


class JobManifest(BaseModel):
    """What :func:`known_core.manifest.write_manifest` wrote of a job."""

    content_sha256: Sha256
    files: list[_Listed]
    versions: dict[str, str | None]
    spec: JobSpec
    inputs_sha256: dict[InputName, Sha256] = Field(min_length=1)
    hypermodel: _Hypermodel
    device: str
    engine: str
    processor: str
    trained_by: dict[str, Any] = {"processes": 1}

    def stack(self) -> dict[str, str | None]:
        """Everything besides the inputs that bytes depend on."""
        processes = str(self.trained_by.get("processes"))
        return {
            **self.versions, "device": self.device, "processor": self.processor, "engine": self.engine,
            "processes": processes,
        }  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One thing in the manifest, and here."""

    expected: Any
    found: Any


@dataclass(frozen=True)
class Figures:
    """The two reports side by side.

    Args:
        selected: the candidate that was delivered.
        gains: of each candidate: {"mean", "low", "high", "n"}.
        agree: whether the same candidate was selected, every candidate's two intervals overlap, and those of the
            selected one lie on the same side of zero, or on neither.
    """

    selected: Difference
    gains: dict[str, Difference]
    agree: bool


@dataclass(frozen=True)
class Comparison:
    """What running a job again showed.

    Args:
        content_sha256: of the two results.
        files: every file of either result, by its path.
        stack: what differs of versions, device, processor and engine.
        figures: None where the job measured nothing, or its report is not beside the manifest.
        artifacts: the new result.
    """

    content_sha256: Difference
    files: dict[str, State]
    stack: dict[str, Difference]
    figures: Figures | None
    artifacts: Path

    @property
    def identical(self) -> bool:
        return bool(self.content_sha256.expected == self.content_sha256.found)

    @property
    def explained(self) -> bool:
        """Whether the bytes differ as another stack makes them differ, and the figures say the same."""
        return bool(self.stack) and self.figures is not None and self.figures.agree

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        facts = {"identical": self.identical, "explained": self.explained}
        return facts | asdict(self) | {"artifacts": str(self.artifacts)}


def reproduce(manifest: Path, work: Path, inputs: Mapping[str, Path], hub: Hub, emit: Emit) -> Comparison:
    """Run a job again, or the rest of it, and compare the result with what its manifest lists.

    Args:
        manifest: the job's; figures are compared where its report.json lies beside it.
        work: holds a folder for each manifest, with fetched inputs, finished stages and the new artifacts; it is kept.
        inputs: by name: model, base, dataset, downstream, state-0 and on. Those that came from the Hub may be left out.
        hub: where these are fetched from, at the commit they had.
        emit: takes each event.

    Raises:
        KnownError: ``manifest_invalid``, ``usage``, ``input_missing``, ``input_differs``, ``hypermodel_differs``, what
            fetching raises, and what :func:`known_core.pipeline.run` raises.
    """
    job = read_job_manifest(manifest)
    folder = work / sha256_file(manifest)[:16]
    _check_hypermodel(job)
    spec = _collect(job, folder / "fetched", inputs, hub, Reporter(emit))
    return compare(manifest, job, pipeline.run(spec, folder, emit))


def read_job_manifest(path: Path) -> JobManifest:
    """The manifest of a job, checked: it may be a stranger's.

    Raises:
        KnownError: ``manifest_invalid``.
    """
    try:
        job = JobManifest.model_validate_json(path.read_bytes())
        _ORIGINS.validate_python(job.spec.origins)
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(str(part) for part in first["loc"])
        raise _invalid(path, f"is not a job's manifest: {where[:120]}: {first['msg'][:200]}") from None
    if job.content_sha256 != sha256_bytes(canonical_json([file.model_dump() for file in job.files])):
        raise _invalid(path, "lists other files than its content_sha256 says")
    if paths_of(job.spec):
        raise _invalid(path, f"names files of another machine: {sorted(paths_of(job.spec))}")
    states = sorted(name for name in job.inputs_sha256 if name.startswith("state-"))
    if len(states) not in (0, job.spec.forgetting.states) or bool(states) == ("model" in job.inputs_sha256):
        raise _invalid(path, f"has the inputs {sorted(job.inputs_sha256)}, which are no job's")
    return job


def _invalid(path: Path, what: str) -> KnownError:
    return KnownError(
        "manifest_invalid",
        f"{path} {what}",
        "Give manifest.json of a job's artifacts, or known/manifest.json of what it published, as it was written by "
        f"known {known_core.__version__} or before.",
    )


def _check_hypermodel(job: JobManifest) -> None:
    states = tuple(Path(name) for name in job.inputs_sha256 if name.startswith("state-"))
    here = hypermodel_of(job.spec.model_copy(update={"trajectory": states or None}))
    sha256 = sha256_file(here)
    if (here.stem, sha256) == (job.hypermodel.name, job.hypermodel.sha256):  # the report has its name too
        return
    shipped = map(hypermodel_path, shipped_hypermodels())
    name = f"{job.hypermodel.name[:80]}.safetensors"
    same = next((path for path in shipped if sha256_file(path) == job.hypermodel.sha256), None)
    raise KnownError(
        "hypermodel_differs",
        f"the job ran with the hyper-model {job.hypermodel.name[:80]!r} (sha256 {job.hypermodel.sha256}), "
        f"here it would be {here.stem!r} (sha256 {sha256})",
        f"Set KNOWN_HYPERMODEL to {same or f'its file {name}, or install the version of known that ships it'}.",
    )


def _collect(job: JobManifest, folder: Path, given: Mapping[str, Path], hub: Hub, reporter: Reporter) -> JobSpec:
    """The spec with the path of every input, each checked; what can be said before a download is said first.

    Args:
        folder: where inputs are fetched to.
    """
    if unknown := sorted(given.keys() - job.inputs_sha256.keys()):
        inputs = ", ".join(sorted(job.inputs_sha256))
        raise KnownError("usage", f"the job has no input {', '.join(unknown)}", f"Its inputs: {inputs}.")
    refs = {name: ref for name, ref in _refs(job).items() if name not in given}
    if missing := sorted(job.inputs_sha256.keys() - given.keys() - refs.keys()):
        flags = " ".join(dict.fromkeys(f"{_flag(name)} PATH" for name in missing))
        raise KnownError(
            "input_missing",
            f"the job's {', '.join(missing)} cannot be fetched from the Hub as it was",
            f"Give the same files again: {flags}; of a trajectory all five, the most recent first.",
        )
    reporter.phase("checking")
    _check(given, job.inputs_sha256)
    fetched = {name: folder / name for name in refs}
    spec = _with_inputs(job.spec, {**given, **fetched})
    if not all(path.is_dir() for path in fetched.values()):
        reporter.phase("fetching")
        origins = _ORIGINS.validate_python(job.spec.origins).values()
        limit = min((origin.sample.max_bytes for origin in origins if origin.sample), default=sys.maxsize)
        fetch_inputs(spec, hub, refs, folder, max_dataset_bytes=limit, on_bytes=reporter.step)
    _check(fetched, job.inputs_sha256)
    return spec


def _refs(job: JobManifest) -> dict[str, HubRef]:
    """Where on the Hub inputs came from, of those that came from there at a commit."""
    refs = {
        name: HubRef(hub.repo_id, hub.revision, "dataset" if name in _DATA else "model")
        for name, origin in _ORIGINS.validate_python(job.spec.origins).items()
        if name in job.inputs_sha256 and (hub := origin.hub) is not None
    }
    return {name: ref for name, ref in refs.items() if ref.resolved}


def _check(paths: Mapping[str, Path], expected: Mapping[str, str]) -> None:
    for path in paths.values():
        if not path.exists():
            raise KnownError("file_missing", f"there is no file or folder {path}", "Check the path.")
    found = {name: sha256_tree(path) for name, path in paths.items()}
    wrong = [
        f"{name} ({paths[name]}) has sha256 {found[name]}, the job's had {expected[name]}"
        for name in paths
        if found[name] != expected[name]
    ]
    if wrong:
        raise KnownError(
            "input_differs",
            "; ".join(wrong),
            "Give the very file or folder that the job was given: the same zip, not one of the same files.",
        )


def _flag(name: str) -> str:
    return "--state" if name.startswith("state-") else f"--{name}"


def _with_inputs(spec: JobSpec, paths: Mapping[str, Path]) -> JobSpec:
    states = tuple(paths[name] for name in sorted(paths) if name.startswith("state-"))
    named = {name: path for name, path in paths.items() if not name.startswith("state-")}
    return spec.model_copy(update={**named, "trajectory": states or None})


def compare(manifest: Path, expected: JobManifest, artifacts: Path) -> Comparison:
    """Compare a result with what a manifest lists.

    Args:
        manifest: where ``expected`` was read from.
        artifacts: the result.
    """
    found = read_job_manifest(artifacts / "manifest.json")
    old, new = ({file.path: file.sha256 for file in job.files} for job in (expected, found))
    stacks = expected.stack(), found.stack()
    return Comparison(
        content_sha256=Difference(expected.content_sha256, found.content_sha256),
        files={path: _state(old.get(path), new.get(path)) for path in sorted(old.keys() | new.keys())},
        stack={
            name: Difference(stacks[0].get(name), stacks[1].get(name))
            for name in dict.fromkeys([*stacks[0], *stacks[1]])
            if stacks[0].get(name) != stacks[1].get(name)
        },
        figures=_compare_figures(manifest.with_name("report.json"), old.get("report.json"), artifacts / "report.json"),
        artifacts=artifacts,
    )


def _state(old: str | None, new: str | None) -> State:
    if old is None or new is None:
        return "new" if old is None else "missing"
    return "same" if old == new else "differs"


def _compare_figures(report: Path, sha256: str | None, here: Path) -> Figures | None:
    if not report.is_file() or sha256_file(report) != sha256:
        return None
    old, new = read_json(report), read_json(here)
    if "transfer" not in old:
        return None
    gains = {
        name: Difference(row["gain"], new["transfer"].get(name, {}).get("gain"))
        for name, row in old["transfer"].items()
        if row["gain"] is not None
    }
    selected = Difference(old["selected"], new["selected"])
    verdict = gains.get(selected.expected)  # None: the weights given, which gain nothing by definition
    return Figures(
        selected,
        gains,
        selected.expected == selected.found
        and all(_overlap(gain) for gain in gains.values())
        and (verdict is None or _side(verdict.expected) == _side(verdict.found)),
    )


def _overlap(gain: Difference) -> bool:
    old, new = gain.expected, gain.found
    return new is not None and bool(old["low"] <= new["high"] and new["low"] <= old["high"])


def _side(gain: dict[str, float]) -> int:
    """1 where an interval lies above zero, -1 below, 0 where it holds zero."""
    return (gain["low"] > 0) - (gain["high"] < 0)
