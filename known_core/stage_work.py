"""What a stage of a job computes, here or in every process of a team: one training, and how a candidate does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from known_core import evaluation
from known_core.calibration import has_batch_norm, recalibrate
from known_core.checkpoint import Checkpoint
from known_core.files import write_json
from known_core.forgetting import FAN_AVERAGED
from known_core.inputs import open_laid_out, resolve_task
from known_core.memory import halving
from known_core.spec import EvaluationSettings, ForgettingSettings, JobSpec
from known_core.stages import Stages
from known_core.tasks.opened import OpenTask
from known_core.team import Rank
from known_core.training import OnStep, fine_tune, thinned


@dataclass(frozen=True)
class Place:
    """Where a job's inputs lie; travels to the processes of a team.

    Args:
        spec: the job's.
        folder: its own.
        laid_out: what :func:`known_core.inputs.lay_out` left.
    """

    spec: JobSpec
    folder: Path
    laid_out: Path

    @property
    def original(self) -> Checkpoint:
        return Checkpoint(self.laid_out / "model")

    def open(self, device: torch.device, rank: Rank | None = None) -> OpenTask:
        """The task with its data and its network, ready to load checkpoints."""
        kind = resolve_task(self.spec.model_copy(update={"config": None}), open_laid_out(self.laid_out))
        task = OpenTask(kind, self.spec, self.laid_out, self.folder / "cache", rank)
        forgetting, holdout = self.spec.forgetting, self.spec.evaluation.holdout
        drawn = {"inputs": self.laid_out.name, "holdout": holdout, "seed": forgetting.seed}
        stages = Stages(self.folder / "work")
        task.prepare(self.original, lambda work: stages.run("head", drawn, work), device)
        return task


@dataclass(frozen=True)
class Training:
    """One training of a trajectory.

    Args:
        start: the checkpoint it begins with.
        subset: indices of its examples in D_0.
        averaged: whether the state is the mean of the weights over the second half of the steps.
        settings: complete: nothing in them is left open.
    """

    start: Path
    subset: list[int]
    epochs: int
    seed: int
    averaged: bool
    settings: ForgettingSettings


def train(
    task: OpenTask, training: Training, out: Path, device: torch.device, on_step: OnStep, rank: Rank | None = None
) -> None:
    """Train, and write ``state`` and ``metrics.json``.

    Args:
        rank: where this process is one of several: all of them call it, each with the task that it opened itself.
    """
    settings, start = training.settings, Checkpoint(training.start)
    assert settings.learning_rate is not None
    assert settings.batch_size is not None
    assert settings.precision != "auto"
    losses: list[float] = []

    def keep(step: int, total: int, loss: float) -> None:
        losses.append(loss)
        on_step(step, total, loss)

    model = task.load(start)
    mean = fine_tune(
        model,
        torch.utils.data.Subset(task.d0.items, training.subset),
        epochs=training.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=training.seed,
        device=device,
        collate=task.collate(training=True),
        precision=settings.precision,
        micro_batch_size=settings.micro_batch_size,
        gradient_checkpointing=bool(settings.gradient_checkpointing),
        average_last=FAN_AVERAGED if training.averaged else 0.0,
        on_step=keep,
        rank=rank,
    )
    if rank is not None and not rank.sharded and not rank.leads:
        return  # each has the same weights
    if training.averaged and has_batch_norm(model):  # an averaged network's statistics are its own
        recalibrate_on_d0(task, model, settings, device)
    task.save(model, out / "state", start)
    scores = task.score(model, task.evaluation.items, device)
    if rank is None or rank.leads:
        facts = {"loss": mean, "accuracy": float(scores.correct.mean()), "curve": thinned(losses)}
        write_json(out / "metrics.json", facts)


def train_in_team(rank: Rank, place: Place, training: Training, out: Path) -> None:
    """:func:`train` in a process of a team, which tells its steps."""
    train(place.open(rank.device, rank), training, out, rank.device, rank.tell, rank)


def measure(
    task: OpenTask,
    candidate: Path,
    out: Path,
    settings: EvaluationSettings,
    seed: int,
    device: torch.device,
    on_run: Callable[[], None],
    memory: dict[str, Any],
    rank: Rank | None = None,
) -> None:
    """Score a candidate on the task itself, and fine-tune it on few examples: ``scores.json`` and ``probe.json``.

    Args:
        memory: ``micro_batch_size`` and ``gradient_checkpointing`` of the fine-tunings.
        rank: as for :func:`train`; only where the network is spread.
    """
    checkpoint = Checkpoint(candidate)
    scores = task.score(task.load(checkpoint), task.evaluation.items, device)
    probe = evaluation.transfer_probe(task, checkpoint, settings, seed, device, on_run, rank=rank, **memory)
    if rank is None or rank.leads:
        write_json(out / "scores.json", {"correct": scores.correct.tolist(), "loss": scores.loss.tolist()})
        write_json(out / "probe.json", vars(probe))


def measure_in_team(
    rank: Rank,
    place: Place,
    candidate: Path,
    out: Path,
    settings: EvaluationSettings,
    seed: int,
    memory: dict[str, Any],
) -> None:
    """:func:`measure` in a process of a team, which tells each fine-tuning that is done."""
    measure(place.open(rank.device, rank), candidate, out, settings, seed, rank.device, rank.tell, memory, rank)


def recalibrate_on_d0(
    task: OpenTask, model: torch.nn.Module, settings: ForgettingSettings, device: torch.device
) -> None:
    """In smaller batches where memory runs out: their statistics are a little noisier, their mean is the same."""
    halving(settings.batch_size or 1, lambda size: recalibrate(model, task.inputs(device, size)))
