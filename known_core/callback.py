"""A trajectory from trainings of one's own: a callback for transformers' Trainer.

The hyper-models read states of trainings on nested, shrinking subsets, in one of two designs (decision 6):

fan
    Every training starts from Θ_0, on D_0, D_1, D_2 and D_3; a state is the mean of the weights over the second half of
    the steps. known-v1 reads it.
chain
    Every training starts where the one before ended, on D_1, D_2, D_3 and D_4; a state is what a training ends with.
    known-paper reads it.

Checkpoints of one training on one set of data are neither: no hyper-model was fitted on them.
"""

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.modules import load_state, read_state, save_state, tensors_of
from known_core.errors import KnownError
from known_core.files import atomic_folder, read_json, write_json
from known_core.forgetting import FAN_AVERAGED, Design, nested_subsets
from known_core.hypermodel import STATES
from known_core.hypermodels import hypermodel_path, load_hypermodel, shipped_hypermodels
from known_core.library.batches import labels_of
from known_core.nowcast_files import nowcast_files

READS: dict[Design, str] = {"fan": "known-v1", "chain": "known-paper"}
_RECORD = "trajectory.json"


class KnownCallback(TrainerCallback):
    """Keeps the state that each training ends with; five are a trajectory.

    At the beginning of each training it puts the weights into the model that the design asks for, so a loop over
    :meth:`subsets` may train one model again and again, and a script that was interrupted goes on at the training that
    was not finished. What the model itself ends a training with stays as the Trainer left it.

    Args:
        folder: for the states: ``state-0`` (Θ_0) to ``state-4`` (the least data), as ``save_pretrained`` writes them.
        design: "fan" or "chain".
    """

    def __init__(self, folder: Path | str, design: Design = "fan") -> None:
        if design not in READS:
            raise KnownError("option_invalid", f"there is no design {design!r}", f"Choose one of {sorted(READS)}.")
        self.folder = Path(folder)
        self.design = design
        self._mean: AveragedModel | None = None
        if self._record["design"] != design:
            raise KnownError(
                "designs_mixed",
                f"{self.folder} holds a {self._record['design']}",
                "Name another folder, or that design.",
            )

    @property
    def _record(self) -> dict[str, Any]:
        """The design, and how many examples each training had."""
        path = self.folder / _RECORD
        record: dict[str, Any] = read_json(path) if path.is_file() else {"design": self.design, "examples": []}
        return record

    @property
    def states(self) -> list[Path]:
        """The states that are there: Θ_0 first, then those of ever less data, as ``known nowcast`` takes them."""
        paths = (self.folder / f"state-{index}" for index in range(STATES))
        return [path for path in paths if path.is_dir()]

    @property
    def complete(self) -> bool:
        """Whether the trajectory is."""
        return len(self.states) == STATES

    @property
    def rate(self) -> float:
        """The trajectory's r: the mean share of a training's examples in those of the one before."""
        examples = self._record["examples"]
        return round(float(np.mean([less / more for more, less in pairwise(examples)])), 2)

    def subsets(
        self, dataset: "Dataset[Any]", labels: Sequence[int] | None = None, *, rate: float = 0.5, seed: int = 0
    ) -> "Iterator[Subset[Any]]":
        """The nested subsets to train on, one after the other; those that were trained on already are left out.

        Args:
            dataset: D_0, with a length.
            labels: (N,) class of each example, so that every subset has all classes; None: found in the data.

        Raises:
            KnownError: ``dataset_unusable`` where there are too few examples.
        """
        count = len(dataset)  # type: ignore[arg-type]
        classes = labels_of(dataset, count) if labels is None else np.asarray(labels, dtype=np.int64)
        drawn = nested_subsets(classes, rate, STATES, seed)
        chosen = drawn[1:] if self.design == "chain" else drawn[:-1]
        for indices in chosen[max(0, len(self.states) - 1) :]:
            yield Subset(dataset, indices.tolist())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Θ_0 is kept at the first; each begins with the weights that its design asks for."""
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise KnownError(
                "option_invalid", "FSDP and DeepSpeed split the weights among processes", "Train without them."
            )
        if self.complete:
            raise KnownError(
                "trajectory_broken",
                f"{self.folder} holds a whole trajectory",
                "Name another folder, or call predict().",
            )
        model, examples = kwargs["model"], self._record["examples"]
        count = len(kwargs["train_dataloader"].dataset)
        if examples and count >= examples[-1]:
            raise KnownError(
                "trajectory_broken",
                f"training {len(examples) + 1} has {count} examples, the one before had {examples[-1]}",
                "Each training needs less data than the one before: loop over callback.subsets(dataset).",
            )
        self._mean = None
        if not self.states:
            if state.is_world_process_zero:
                save_state(tensors_of(model), self._start(0))
                self._keep(model, 0, kwargs.get("processing_class"), None)
        elif state.global_step == 0:  # else the Trainer goes on from a checkpoint of its own
            index = 0 if self.design == "fan" else len(self.states) - 1
            load_state(model, read_state(Checkpoint(self._start(index))))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A fan's mean is over the second half of the steps."""
        if self.design == "fan" and state.global_step > (1 - FAN_AVERAGED) * state.max_steps:
            self._mean = self._mean or AveragedModel(kwargs["model"])
            self._mean.update_parameters(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The state is kept, whole or not at all."""
        mean, self._mean = self._mean, None
        if self.design == "fan" and mean is None:
            raise KnownError(
                "trajectory_broken",
                f"the training ended at step {state.global_step} of {state.max_steps}",
                "A state of a fan is the mean over the second half of the steps: train to the end.",
            )
        if not state.is_world_process_zero:
            return
        index, record = len(self.states), self._record
        if self.design == "chain":
            save_state(tensors_of(kwargs["model"]), self._start(index))
        self._keep(kwargs["model"], index, kwargs.get("processing_class"), mean)
        if self.design == "chain" or self.complete:
            shutil.rmtree(self._start(index - 1 if self.design == "chain" else 0), ignore_errors=True)
        record["examples"] = [*record["examples"][: index - 1], len(kwargs["train_dataloader"].dataset)]
        write_json(self.folder / _RECORD, record)

    def _start(self, index: int) -> Path:
        """Where the weights of a state are, as torch names them, for the training that begins with it."""
        return self.folder / f"start-{index}"

    def _keep(self, model: nn.Module, index: int, processor: Any, mean: AveragedModel | None) -> None:
        source: nn.Module = model if mean is None else mean.module
        with atomic_folder(self.folder / f"state-{index}") as folder:
            if hasattr(model, "save_pretrained"):
                whole: Any = model  # what is tied is written once, as from_pretrained reads it
                whole.save_pretrained(folder, state_dict=source.state_dict())
            else:
                save_state(tensors_of(source), folder)
            if processor is not None and hasattr(processor, "save_pretrained"):
                processor.save_pretrained(folder)
            Checkpoint(folder).check_finite()

    def predict(
        self, out: Path | str | None = None, *, recurrences: int = 3, hypermodel: str | Path | None = None
    ) -> dict[str, Path]:
        """The candidates, each a folder as the states are: ``x2``, ``x4``, ``x8`` for subsets of half the size.

        Batch-normalisation statistics are those of Θ_0: re-estimate them (:func:`known_core.calibration.recalibrate`).
        Whether a candidate is better to fine-tune from, only a comparison on your data can say.

        Args:
            out: a new folder; None: ``predicted`` beside the states.
            hypermodel: a shipped one's name or a file, of the same design; None: the shipped one.

        Raises:
            KnownError: ``states_count`` while trainings are missing; ``designs_mixed``; ``output_exists``.
        """
        if not self.complete:
            raise KnownError(
                "states_count",
                f"{len(self.states)} of {STATES} states are there",
                "Train on all of callback.subsets().",
            )
        chosen = hypermodel or READS[self.design]
        path = hypermodel_path(str(chosen)) if chosen in shipped_hypermodels() else Path(chosen)
        if (reads := load_hypermodel(path).design) != self.design:
            raise KnownError(
                "designs_mixed", f"{path.stem} reads a {reads}, and the states are a {self.design}",
                f"{READS[self.design]} reads these.",
            )  # fmt: skip
        target = Path(out) if out is not None else self.folder / "predicted"
        facts = nowcast_files(self.states, target, recurrences=recurrences, rate=self.rate, hypermodel=path)
        return {name: target / name for name in facts["outputs"]}
