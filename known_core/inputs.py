"""A job's inputs: checked before anything is unpacked, then laid out as files."""

import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers.models.auto import modeling_auto

from known_core.checkpoint.reader import WEIGHTS, check_stored_finite, stored_shapes
from known_core.checkpoint.source import FolderSource, Layered, Source, open_source, unpack
from known_core.data import DataFiles, inspect_data
from known_core.data.images import check_image_headers
from known_core.data.readers import FORMATS
from known_core.errors import KnownError
from known_core.files import write_json
from known_core.forgetting import nested_subsets
from known_core.models.config import ADAPTER_CONFIG, read_config, read_fields
from known_core.models.opening import open_network
from known_core.models.templates import check_templates
from known_core.spec import JobSpec, paths_of
from known_core.tasks import TASKS
from known_core.tasks.base import Task, match_labels

Sources = Mapping[str, Source]  # by the name of the input: model, base, dataset, downstream
_DATA_FILE = "data.parquet"  # the name a single uploaded file gets, where its own says nothing
_TASK_OF_CLASSES: dict[str, Mapping[str, Any]] = {  # in transformers' auto mappings
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "semantic-segmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "feature-extraction": modeling_auto.MODEL_MAPPING_NAMES,
}


def open_sources(spec: JobSpec, *, without: Container[str] = ()) -> dict[str, Source]:
    """The inputs at their paths, not unpacked.

    Args:
        without: inputs that are elsewhere.

    Raises:
        KnownError: ``archive_*``, pointing at the request's field.
    """
    sources: dict[str, Source] = {}
    for name, path in paths_of(spec).items():
        if name in without:
            continue
        with pointing_at(pointer_of(name)):
            sources[name] = open_source(path, single_file_name=_single_name(name, path, spec))
    return sources


def open_laid_out(folder: Path) -> dict[str, Source]:
    """The inputs as :func:`lay_out` left them."""
    return {path.name: FolderSource(path) for path in folder.iterdir() if path.is_dir()}


def pointer_of(name: str) -> str:
    """The field of the request that names an input."""
    return {
        "model": "/model", "base": "/model/base", "dataset": "/dataset", "downstream": "/evaluation/downstream",
    }.get(name) or name.replace("state-", "/trajectory/")  # fmt: skip


def _single_name(name: str, path: Path, spec: JobSpec) -> str:
    """What a file that is the whole input is called: its format is told by its name."""
    if name in ("model", "base") or name.startswith("state-"):
        return WEIGHTS
    suffix = Path(spec.file_names.get(name, path.name)).suffix.lower()
    return f"data{suffix}" if suffix in FORMATS else _DATA_FILE


def file_names(spec: JobSpec) -> dict[str, str]:
    """What each single file of data is called: who has it under another name reads it the same with these."""
    paths = {name: path for name, path in paths_of(spec).items() if name in ("dataset", "downstream")}
    return {name: path.name for name, path in paths.items() if path.is_file()} | spec.file_names


def infer_task(model: Source, base: Source | None, given: dict[str, Any] | None) -> str:
    """The task that a checkpoint's config says.

    Raises:
        KnownError: ``unsupported_architecture``, ``task_unclear``, and what reading the config raises.
    """
    if ADAPTER_CONFIG in model.names():
        kind = read_fields(model, ADAPTER_CONFIG, "config_invalid").get("task_type")
        by_type = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification"}
        if kind in by_type:
            return by_type[str(kind)]
        if base is None:
            return "causal-lm"  # it ends with the base that is missing
        config = read_config(base, None)
    else:
        config = read_config(model, given)
    if "architecture" in config:
        return "image-classification"
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    for task, classes in _TASK_OF_CLASSES.items():
        names = classes.get(str(config.get("model_type")), ())
        if name in ((names,) if isinstance(names, str) else tuple(names)):
            return task
    model_type = str(config.get("model_type"))
    what = f"model_type {model_type[:80]!r} with architectures {str(architectures)[:120]}"
    trajectory = "A trajectory of five states is taken of any architecture whatever."
    if model_type not in modeling_auto.MODEL_MAPPING_NAMES:
        raise KnownError("unsupported_architecture", f"transformers does not know {what}", trajectory)
    raise KnownError(
        "task_unclear", f"{what} does not say what the model does", f"Name a task: {sorted(TASKS)}. {trajectory}"
    ).at("/task")


def resolve_task(spec: JobSpec, sources: Sources) -> Task:
    """The task asked for, or the one the checkpoint says.

    Raises:
        KnownError: ``task_unclear``, ``task_unknown``.
    """
    with pointing_at("/model"):
        name = spec.task or infer_task(sources["model"], sources.get("base"), spec.config)
    if name not in TASKS:
        raise KnownError("task_unknown", f"there is no task {name[:80]!r}", f"Tasks: {sorted(TASKS)}.").at("/task")
    return TASKS[name]


def inspect_inputs(spec: JobSpec, sources: Sources) -> dict[str, Any]:
    """Check a job's inputs without unpacking them; what was understood of them.

    Raises:
        KnownError: the first thing that makes the job impossible, pointing at the request's field.
    """
    if spec.trajectory is not None:
        return _inspect_trajectory(spec, sources)
    task = resolve_task(spec, sources)
    with pointing_at("/model"):
        model, base = sources["model"], sources.get("base")
        for source in filter(None, (model, base)):
            check_templates(source)
        network = open_network(task.network, model, spec.config, base, None)
        stored = stored_shapes(model)
        network.check(stored)
        task.processor(network, Layered(model, base), spec.forgetting.max_length)
        check_stored_finite(model)
    roles = task.roles(network)
    summary: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        "library": network.library,
        "architecture": network.architecture,
        "parameters": sum(map(math.prod, stored.values())),
    }
    with pointing_at("/dataset"):
        if "dataset" not in sources:
            raise KnownError("dataset_missing", "the job has no data set", "Give dataset, or a trajectory instead.")
        files = inspect_data(sources["dataset"], roles, spec.data)
        check_image_headers(sources["dataset"], files)
        to_model = match_labels(files, network, spec.data.labels)
        if len(files.train_split.labels):
            _check_sizes(files, spec)
    summary["dataset"] = files.summary()
    if files.classes and network.label_names:
        labels = [network.label_names[index] for index in to_model]
        summary["dataset"]["labels"] = dict(zip(files.classes, labels, strict=True))
    if "downstream" in sources:
        with pointing_at("/evaluation/downstream"):
            downstream = inspect_data(sources["downstream"], roles, spec.downstream_data)
            check_image_headers(sources["downstream"], downstream)
            if not task.new_head:
                match_labels(downstream, network, spec.downstream_data.labels)
            _check_lone(downstream)
        summary["downstream"] = downstream.summary()
    return summary


def _inspect_trajectory(spec: JobSpec, sources: Sources) -> dict[str, Any]:
    """Five checkpoints of one model, of any architecture: names and shapes alone are compared."""
    assert spec.trajectory is not None
    if len(spec.trajectory) != spec.forgetting.states:
        raise KnownError(
            "states_count",
            f"{len(spec.trajectory)} states given",
            f"Give {spec.forgetting.states}, the most recent first.",
        ).at("/trajectory")
    shapes: list[dict[str, tuple[int, ...]]] = []
    for index in range(len(spec.trajectory)):
        with pointing_at(f"/trajectory/{index}"):
            shapes.append(stored_shapes(sources[f"state-{index}"]))
            if shapes[index] != shapes[0]:
                differing = sorted(
                    {n for n in shapes[0].keys() | shapes[index].keys() if shapes[0].get(n) != shapes[index].get(n)}
                )
                raise KnownError(
                    "states_mismatch",
                    f"state {index} is of another model than state 0: {differing[:10]} differ",
                    "Give states of one training run.",
                )
    return {"task": None, "parameters": sum(map(math.prod, shapes[0].values())), "states": len(shapes)}


def lay_out(spec: JobSpec, folder: Path) -> None:
    """Unpack the inputs below ``folder``: model, base, dataset, downstream, or state-0 and on.

    Raises:
        KnownError: what reading them raises.
    """
    for name, path in paths_of(spec).items():
        with pointing_at(pointer_of(name)):
            unpack(path, folder / name, single_file_name=_single_name(name, path, spec))
    if spec.config is not None:
        write_json(folder / "model" / "config.json", spec.config)


@contextmanager
def pointing_at(pointer: str) -> Iterator[None]:
    """Errors inside point at a field of the request, unless they say a field themselves."""
    try:
        yield
    except KnownError as error:
        error.at(pointer)
        raise


def _check_lone(files: DataFiles) -> None:
    small = {name: count for name, count in files.train.items() if count < 2}
    if small:
        raise KnownError(
            "dataset_unusable", f"classes with a single example: {sorted(small)[:10]}", "Give at least two a class."
        )


def _check_sizes(files: DataFiles, spec: JobSpec) -> None:
    _check_lone(files)
    share = 1.0 if files.test else 1 - spec.evaluation.holdout
    if spec.data.max_examples is not None:
        share *= min(1.0, spec.data.max_examples / files.train_split.rows)
    labels = np.repeat(np.arange(len(files.train)), [max(1, int(count * share)) for count in files.train.values()])
    nested_subsets(labels, spec.forgetting.rate, spec.forgetting.states, spec.forgetting.seed)
    if spec.downstream is None:
        evaluation = sum(files.test.values()) if files.test else len(labels) * spec.evaluation.holdout
        if evaluation < 4 * len(files.train):
            raise KnownError(
                "dataset_unusable",
                f"about {evaluation:.0f} examples are left to evaluate {len(files.train)} classes on",
                "Add a test split, raise evaluation.holdout, or give evaluation.downstream.",
            )
