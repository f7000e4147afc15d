"""Training settings that a request leaves open: the task's own, and what fits the device, found by trial."""

from collections.abc import Iterator
from typing import Any

import torch

from known_core.checkpoint import Checkpoint
from known_core.costs import FITS, training_bytes
from known_core.errors import KnownError
from known_core.memory import free_memory, ran_out_of_memory
from known_core.models.base import Network
from known_core.spec import ForgettingSettings, JobSpec
from known_core.tasks.base import Task
from known_core.tasks.opened import OpenTask
from known_core.team import Team, TeamWish, count_processes
from known_core.training import RunningMean, enable_checkpointing

_ADAPTER_LEARNING_RATE = 2e-4  # LoRA's low-rank factors take larger steps (Hu et al. 2022 used 2e-4 for GPT-2)


def with_defaults(spec: JobSpec, task: OpenTask, device: torch.device) -> JobSpec:
    """The same job with nothing left open but what a trial has to find (:func:`fit_to_memory`)."""
    return with_defaults_of(spec, task.task, task.network, device)


def with_defaults_of(spec: JobSpec, task: Task, network: Network, device: torch.device) -> JobSpec:
    """The same, of a task whose data is not loaded."""
    defaults, asked = task.defaults, spec.forgetting
    forgetting = asked.model_copy(
        update={
            "learning_rate": asked.learning_rate or _learning_rate(network, defaults.learning_rate),
            "batch_size": asked.batch_size or defaults.batch_size,
            "precision": _precision(device) if asked.precision == "auto" else asked.precision,
        }
    )
    grid = spec.evaluation.probe_learning_rates or defaults.probe_learning_rates
    evaluation = spec.evaluation.model_copy(update={"probe_learning_rates": grid})
    return spec.model_copy(update={"forgetting": forgetting, "evaluation": evaluation})


def _learning_rate(network: Network, default: float) -> float:
    return _ADAPTER_LEARNING_RATE if network.library == "peft" else default


def _precision(device: torch.device) -> str:
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def fit_to_memory(
    task: OpenTask, start: Checkpoint, settings: ForgettingSettings, device: torch.device
) -> dict[str, Any]:
    """How many examples to hold in memory at once, and whether to trade time for memory.

    On a GPU one step with the longest examples is tried, and halved while memory runs out; on a CPU, where running out
    ends the process, the whole batch is taken as it is. The effective batch size stays the one asked for.

    Returns:
        The settings ``micro_batch_size`` and ``gradient_checkpointing``.

    Raises:
        KnownError: ``out_of_memory`` where not even one example fits.
    """
    assert settings.batch_size is not None
    micro, checkpointing = settings.batch_size, bool(settings.gradient_checkpointing)
    if device.type != "cuda" or settings.micro_batch_size is not None:
        micro = min(micro, settings.micro_batch_size or micro)
        return {"micro_batch_size": micro, "gradient_checkpointing": checkpointing}
    for micro, checkpointing in _trials(settings.batch_size, settings.gradient_checkpointing):
        if _fits(task, start, micro, checkpointing, settings.precision, device):
            return {"micro_batch_size": micro, "gradient_checkpointing": checkpointing}
    raise KnownError(
        "out_of_memory",
        f"not even one example fits into the memory of {torch.cuda.get_device_name(device)}",
        "Lower forgetting.max_length, use smaller images, or run on a larger GPU.",
    )


def less_memory(
    task: OpenTask, start: Checkpoint, settings: ForgettingSettings, asked: ForgettingSettings
) -> dict[str, Any] | None:
    """What to go on with where memory ran out after all: half the examples at once, at last checkpointing.

    Args:
        settings: what it ran out with.
        asked: the request's, which may have ruled checkpointing out.

    Returns:
        As :func:`fit_to_memory`; None where nothing is left to try.
    """
    micro = settings.micro_batch_size
    assert micro is not None
    if micro > 1:
        return {"micro_batch_size": micro // 2, "gradient_checkpointing": settings.gradient_checkpointing}
    if settings.gradient_checkpointing or asked.gradient_checkpointing is False:
        return None
    return {"micro_batch_size": 1, "gradient_checkpointing": True} if enable_checkpointing(task.load(start)) else None


def untried(settings: ForgettingSettings) -> dict[str, Any]:
    """What :func:`fit_to_memory` finds, of a network that no single process can try: :func:`less_memory` comes next."""
    assert settings.batch_size is not None
    return {
        "micro_batch_size": settings.micro_batch_size or settings.batch_size,
        "gradient_checkpointing": settings.gradient_checkpointing is not False,
    }


def choose_team(
    wish: TeamWish,
    task: OpenTask,
    start: Checkpoint,
    settings: ForgettingSettings,
    smallest: int,
    device: torch.device,
) -> tuple[Team | None, str | None]:
    """In how many processes a job's stages are trained, and what each of them holds.

    Args:
        settings: complete but for what a trial finds.
        smallest: examples of the smallest subset that is trained on.

    Returns:
        None, and why, where this process trains alone although more were asked for.

    Raises:
        KnownError: ``processes_invalid``, ``sharding_unsupported``.
    """
    assert settings.batch_size is not None
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    count = count_processes(wish, settings.batch_size, smallest, devices)
    if count == 1:
        return None, None
    if task.has_batch_norm:
        return None, "batch norm: its statistics are those of a whole batch"
    weights = list(task.skeleton.parameters())
    needed = training_bytes(sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad))
    fits = device.type == "cpu" or needed < FITS * torch.cuda.get_device_properties(device).total_memory
    if wish.sharding == "ddp" or (wish.sharding == "auto" and fits):
        return Team(count, "ddp"), None
    from known_core.sharding import check_shardable, unsupported

    if settings.precision == "float16":
        raise unsupported("float16 needs the gradients of all of it in one place; take bfloat16")
    check_shardable(task.network, start)
    return Team(count, "fsdp"), None


def probe_micro_batch(settings: ForgettingSettings) -> int | None:
    """How many examples the transfer probe's trainings hold at once: no more than the others, where memory is short."""
    assert settings.batch_size is not None
    micro = settings.micro_batch_size
    return micro if micro is not None and (micro < settings.batch_size or micro == 1) else None


def _trials(batch_size: int, wish: bool | None) -> Iterator[tuple[int, bool]]:
    """Ever smaller parts of a batch; after an eighth of it, all again with checkpointing, unless it was decided."""
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    if wish is None:
        yield from ((size, False) for size in sizes if 8 * size >= batch_size)
    yield from ((size, wish is not False) for size in sizes)


def _fits(
    task: OpenTask, start: Checkpoint, micro: int, checkpointing: bool, precision: str, device: torch.device
) -> bool:
    """Whether one training step with the longest examples fits into memory, beside the mean of the weights."""
    model = average = None
    try:
        model = task.load(start).to(device).train()
        average = RunningMean(model)
        if checkpointing:
            enable_checkpointing(model)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.0)
        batch = {name: value.to(device) for name, value in task.collate(training=True)(_longest(task, micro)).items()}
        half = precision != "float32"
        with torch.autocast(device.type, getattr(torch, precision) if half else None, enabled=half):
            loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return False
    finally:
        del model, average
        free_memory()
    return True


def _longest(task: OpenTask, count: int) -> list[Any]:
    """So many examples of D_0, the longest texts; images are all of one size."""
    items, total = task.d0.items, len(task.d0.labels)
    if "input_ids" in items[0]:
        longest = sorted((items[index] for index in range(total)), key=lambda item: len(item["input_ids"]))
        return [longest[-1 - index % total] for index in range(count)]
    return [items[index % total] for index in range(count)]
