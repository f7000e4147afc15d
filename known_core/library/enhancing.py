"""KNOW prediction for a training script: any torch module, any data set, no server.

    forgetting (k of n) -> nowcasting -> calibrating -> measuring

Each stage's output is kept under a hash of its inputs, so with a folder an interrupted call goes on where it was.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from known_core.baselines import Continued
from known_core.calibration import has_batch_norm, recalibrate
from known_core.checkpoint import Checkpoint
from known_core.checkpoint.modules import load_state, read_state, save_state, tensors_of
from known_core.client.report import Report
from known_core.comparison import UNCHANGED, ProbeResult
from known_core.errors import KnownError
from known_core.events import Reporter
from known_core.files import link_or_copy, read_json, sha256_file, write_json
from known_core.forgetting import FAN_AVERAGED, Indices, nested_subsets, subset_hash
from known_core.hypermodel import STATES
from known_core.hypermodels import hypermodel_path, load_hypermodel, shipped_hypermodels
from known_core.library.batches import Data, Loss, WithLoss, default_loss
from known_core.library.findings import findings
from known_core.library.probe import Probe
from known_core.library.result import Candidates, Enhanced, Scratch
from known_core.manifest import processor, write_manifest
from known_core.nowcast import nowcast
from known_core.spec import candidate_names
from known_core.stages import Stages
from known_core.terminal import bars_where_seen
from known_core.training import default_device, fine_tune

Train = Callable[[nn.Module, "DataLoader[Any]"], nn.Module | None]
Evaluate = Callable[[nn.Module], float | Sequence[float]]
_CONTROLS = ("continued", "swa")


def enhance(
    model: nn.Module,
    dataset: "Dataset[Any] | DataLoader[Any]",
    *,
    loss: Loss = default_loss,
    train: Train | None = None,
    evaluate: Evaluate | None = None,
    probe: Probe | None = None,
    labels: Sequence[int] | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-3,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    rate: float = 0.5,
    recurrences: int = 3,
    hypermodel: str | Path | None = None,
    controls: Sequence[str] | None = None,
    select: str = "best",
    seed: int = 0,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    progress: bool = True,
) -> Enhanced:
    """Weights as if trained on two, four and eight times the data. The model is left as it is.

    Copies of the model are fine-tuned on nested, shrinking subsets of its own data, and a hyper-model reads each
    weight's trajectory (docs/library.md). Whether a prediction is better to fine-tune from than the weights given, only
    ``probe`` can say; without it, or ``evaluate``, nothing is measured and the report says so.

    Args:
        model: trained already, on ``dataset``.
        dataset: D_0. Of a DataLoader its data set, batch size and collate function are used.
        loss: of the model and a batch. By default cross-entropy for (input, label) batches, and the model's own loss
            for batches that are mappings.
        train: your own training: called with a copy of the model, on the device, and a shuffled loader over a subset;
            what it returns, or else the copy, is the state. Called once for each subset.
        evaluate: higher is better; one figure, or one for each example, which are compared in pairs.
        labels: (N,) class of each example, so that every subset has all classes; None: found in the data.
        epochs: passes over each subset, of the built-in training (AdamW, constant learning rate, no weight decay).
        batch_size: None: the DataLoader's, else 32.
        micro_batch_size: examples in memory at once.
        rate: share of each subset in the one before it; it names the predictions.
        recurrences: how many predictions.
        hypermodel: "known-v1" (reads a fan: every state from the given weights), "known-paper" (a chain: each state
            from the one before) or a file; None: KNOWN_HYPERMODEL, else known-v1.
        controls: simpler candidates: "continued" (trained on, on all the data) and "swa" (the same for the epochs that
            the whole fan costs); None: both, or with ``train`` the first alone.
        select: "best", or the name of the candidate to select.
        folder: keeps finished stages and the result; the same call with it goes on where it was interrupted. It belongs
            to one model, data set, loss and training: these cannot be told apart by their values.
        progress: bars, in terminals and notebooks.

    Raises:
        KnownError: ``dataset_unusable``, ``training_diverged``, ``nonfinite_weights``, ``hypermodel_unknown``,
            ``candidate_unknown``, ``option_invalid``.
    """
    data = Data.of(dataset, batch_size)
    if controls is None:
        controls = _CONTROLS if train is None else _CONTROLS[:1]
    plan = _Plan(
        model, data, loss, train, evaluate, probe,
        labels=data.labels() if labels is None else np.asarray(labels, dtype=np.int64),
        epochs=epochs, learning_rate=learning_rate, micro_batch_size=micro_batch_size, rate=rate,
        recurrences=recurrences, hypermodel=_hypermodel(hypermodel), controls=tuple(controls), select=select, seed=seed,
        device=torch.device(device) if device is not None else default_device(),
    )  # fmt: skip
    plan.check()
    scratch = Scratch() if folder is None else None
    with bars_where_seen() if progress else nullcontext(lambda event: None) as draw:
        return _Run(plan, scratch.folder if scratch else Path(str(folder)), Reporter(draw)).run(scratch)


def _hypermodel(given: str | Path | None) -> Path:
    if given is None or given in shipped_hypermodels():
        return hypermodel_path(None if given is None else str(given))
    if not Path(given).exists():
        return hypermodel_path(str(given))  # which says what there is
    return Path(given)


@dataclass(frozen=True)
class _Plan:
    """A call's arguments, complete."""

    model: nn.Module
    data: Data
    loss: Loss
    train: Train | None
    evaluate: Evaluate | None
    probe: Probe | None
    labels: Indices
    epochs: int
    learning_rate: float
    micro_batch_size: int | None
    rate: float
    recurrences: int
    hypermodel: Path
    controls: tuple[str, ...]
    select: str
    seed: int
    device: torch.device

    @property
    def names(self) -> list[str]:
        """Every candidate besides the weights given."""
        return [*candidate_names(self.rate, self.recurrences), *self.controls]

    def check(self) -> None:
        """What cannot be, before any work. Raises: KnownError."""
        if unknown := set(self.controls) - set(_CONTROLS):
            raise KnownError("option_invalid", f"there is no control {sorted(unknown)}", f"Choose of {_CONTROLS}.")
        if self.train is not None and "swa" in self.controls:
            raise KnownError(
                "option_invalid",
                "the control swa trains longer, which a train function of your own does not say how to",
                "Leave it out of controls.",
            )
        if self.select not in ("best", UNCHANGED, *self.names):
            raise KnownError("candidate_unknown", f"select is {self.select!r}", f'"best", or one of {self.names}.')
        if len(self.labels) != self.data.count:
            raise KnownError(
                "option_invalid", f"{len(self.labels)} labels for {self.data.count} examples", "Give one an example."
            )

    def training(self) -> dict[str, Any]:
        """What a state depends on, besides the model and the data."""
        own = self.loss if self.train is None else self.train
        facts: dict[str, Any] = {"by": f"{getattr(own, '__module__', '')}.{getattr(own, '__qualname__', type(own))}"}
        facts |= {"batch_size": self.data.batch_size, "seed": self.seed}
        if self.train is None:
            facts |= {"epochs": self.epochs, "learning_rate": self.learning_rate}
        return facts


class _Run:
    def __init__(self, plan: _Plan, root: Path, reporter: Reporter) -> None:
        self._plan, self._reporter = plan, reporter
        self._stages = Stages(root)
        self._known = load_hypermodel(plan.hypermodel, plan.device)
        self._subsets = nested_subsets(plan.labels, plan.rate, STATES, plan.seed)

    def run(self, scratch: Scratch | None) -> Enhanced:
        given = self._given()
        trained = self._forget(given)
        predicted = self._nowcast(trained)
        candidates = {UNCHANGED: given} | self._calibrate(predicted)
        probes, scores = self._measure(candidates)
        result = self._package(candidates, predicted, probes, scores)
        report = Report(read_json(result / "report.json"))
        return Enhanced(Candidates(result, list(candidates), scratch), report)

    def _given(self) -> Checkpoint:
        """Θ_0. It names every later stage by its sha256."""
        state = tensors_of(self._plan.model)
        with TemporaryDirectory() as folder:
            save_state(state, Path(folder))
            facts = {"weights": sha256_file(Path(folder) / "model.safetensors"), "items": self._plan.data.count}
        facts["labels"] = subset_hash(self._plan.labels)
        given = Checkpoint(self._stages.run("given", facts, lambda out: save_state(state, out / "state")) / "state")
        given.check_finite()
        return given

    def _forget(self, given: Checkpoint) -> dict[str, list[Checkpoint]]:
        """The states of the hyper-model's design, Θ_0 first, and those that controls need."""
        design = self._known.design
        wanted: list[tuple[str, int]] = [(design, stage) for stage in range(STATES - 1)]
        wanted += [("fan", 0)] if "continued" in self._plan.controls and design == "chain" else []
        wanted += [("swa", 0)] if "swa" in self._plan.controls else []
        states: dict[str, list[Checkpoint]] = {name: [given] for name in ("chain", "fan", "swa")}
        for index, (training, stage) in enumerate(wanted):
            self._reporter.phase("forgetting", f"{index + 1} of {len(wanted)}")
            start = states["chain"][-1] if training == "chain" else given
            states[training].append(self._train(training, stage, start))
        return states

    def _train(self, training: str, stage: int, start: Checkpoint) -> Checkpoint:
        """Θ_(stage+1) of a chain from the state before it; Φ_stage of a fan, or all of swa, from Θ_0."""
        plan = self._plan
        subset = self._subsets[stage + 1 if training == "chain" else stage]
        epochs = plan.epochs * (sum(plan.rate**k for k in range(STATES - 1)) if training == "swa" else 1)
        seed = plan.seed + stage + 1

        def work(out: Path) -> None:
            model = self._load(start)
            if plan.train is not None:
                torch.manual_seed(seed)
                model = plan.train(model.train(), plan.data.loader(subset, seed)) or model
            else:
                wrapped = WithLoss(model, plan.loss)
                fine_tune(
                    wrapped,
                    plan.data.take(subset),
                    epochs=round(epochs),
                    learning_rate=plan.learning_rate,
                    batch_size=plan.data.batch_size,
                    seed=seed,
                    device=plan.device,
                    collate=plan.data.named,
                    average_last=0.0 if training == "chain" else FAN_AVERAGED,
                    micro_batch_size=plan.micro_batch_size,
                    on_step=self._reporter.step,
                )
                if training != "chain":
                    self._recalibrate(model)  # an averaged network's statistics are its own
            save_state(tensors_of(model), out / "state")
            Checkpoint(out / "state").check_finite()

        inputs = {"start": start.path.parent.name, "subset": subset_hash(subset), "training": plan.training()}
        return Checkpoint(self._stages.run(f"{training}-{stage}", inputs, work) / "state")

    def _nowcast(self, trained: dict[str, list[Checkpoint]]) -> Path:
        self._reporter.phase("nowcasting")
        plan, states = self._plan, trained[self._known.design]

        def work(out: Path) -> None:
            outputs = [out / name for name in candidate_names(plan.rate, plan.recurrences)]
            counts = nowcast(states, self._known, outputs, plan.rate, on_bytes=self._reporter.step)
            for control in plan.controls:
                trajectory = trained["swa" if control == "swa" else "fan"][: Continued.states]
                nowcast(trajectory, Continued(), [out / control], plan.rate)
            write_json(out / "counts.json", counts)

        inputs = {
            "states": {name: [state.path.parent.name for state in row] for name, row in trained.items()},
            "hypermodel": sha256_file(plan.hypermodel),
            "engine": self._known.engine.name,
            "names": plan.names,
            "rate": plan.rate,
        }
        return self._stages.run("nowcast", inputs, work, resumes=True)

    def _calibrate(self, predicted: Path) -> dict[str, Checkpoint]:
        self._reporter.phase("calibrating")

        def work(out: Path) -> None:
            for index, name in enumerate(self._plan.names):
                candidate = Checkpoint(predicted / name)
                model = self._load(candidate)
                self._recalibrate(model)
                save_state(tensors_of(model), out / name)
                Checkpoint(out / name).check_finite()
                self._reporter.step(index + 1, len(self._plan.names))

        folder = self._stages.run("calibration", {"predicted": predicted.name}, work)
        return {name: Checkpoint(folder / name) for name in self._plan.names}

    def _measure(self, candidates: dict[str, Checkpoint]) -> tuple[dict[str, ProbeResult], dict[str, list[float]]]:
        plan = self._plan
        probes: dict[str, ProbeResult] = {}
        scores: dict[str, list[float]] = {}
        if plan.probe is None and plan.evaluate is None:
            return probes, scores
        self._reporter.phase("measuring")
        total = len(candidates) * (plan.probe.runs if plan.probe else 1)
        done = 0

        def on_run() -> None:
            nonlocal done
            done += 1
            self._reporter.step(done, total)

        for name, candidate in candidates.items():
            key = {"candidate": [candidate.path.parent.name, name]}

            def evaluated(out: Path, candidate: Checkpoint = candidate) -> None:
                assert plan.evaluate is not None
                figures = plan.evaluate(self._load(candidate).eval())
                write_json(out / "scores.json", np.atleast_1d(np.asarray(figures, dtype=np.float64)).tolist())

            def probed(out: Path, candidate: Checkpoint = candidate) -> None:
                assert plan.probe is not None
                result = plan.probe.measure(self._load(candidate), plan.seed, plan.device, on_run)
                write_json(out / "probe.json", vars(result))

            if plan.evaluate is not None:
                scores[name] = read_json(self._stages.run(f"score-{name}", key, evaluated) / "scores.json")
            if plan.probe is not None:
                settings = {**key, "probe": plan.probe.settings(), "seed": plan.seed}
                probes[name] = ProbeResult(
                    **read_json(self._stages.run(f"probe-{name}", settings, probed) / "probe.json")
                )
        return probes, scores

    def _package(
        self,
        candidates: dict[str, Checkpoint],
        predicted: Path,
        probes: dict[str, ProbeResult],
        scores: dict[str, list[float]],
    ) -> Path:
        plan = self._plan
        report = {
            **findings(probes, scores, plan.select, plan.names),
            "hypermodel": {
                "name": plan.hypermodel.stem, "sha256": sha256_file(plan.hypermodel), "design": self._known.design
            },
            "weights_predicted": read_json(predicted / "counts.json"),
            "settings": {"rate": plan.rate, "recurrences": plan.recurrences, "training": plan.training()},
            "forgetting_examples": [len(subset) for subset in self._subsets],
        }  # fmt: skip
        report["notes"] = [*report["notes"], *self._notes()]

        def work(out: Path) -> None:
            for name, candidate in candidates.items():
                link_or_copy(candidate.path / "model.safetensors", out / name / "model.safetensors")
            write_json(out / "report.json", report)
            write_manifest(
                out,
                {
                    "hypermodel": report["hypermodel"],
                    "subsets": [{"examples": len(rows), "sha256": subset_hash(rows)} for rows in self._subsets],
                    "seconds": self._stages.seconds,
                    "device": str(plan.device),
                    "processor": processor(plan.device),
                    "engine": self._known.engine.name,
                },
            )

        return self._stages.run("result", {"candidates": predicted.name, "report": report}, work)

    def _notes(self) -> list[str]:
        known, notes = self._plan.hypermodel.stem, []
        if self._plan.train is not None and self._known.design == "fan":
            notes.append(
                f"{known} was fitted on states that are the mean of the weights over the second half of a training's "
                "steps; your train function decides what its states are."
            )
        if self._plan.train is not None and has_batch_norm(self._plan.model):
            notes.append("Batch-normalisation statistics of the candidates were estimated again on the data.")
        return notes

    def _load(self, checkpoint: Checkpoint) -> nn.Module:
        model = copy.deepcopy(self._plan.model)
        load_state(model, read_state(checkpoint))
        return model.to(self._plan.device)

    def _recalibrate(self, model: nn.Module) -> None:
        if has_batch_norm(model):
            batches: Any = ({"batch": batch} for batch in self._plan.data.batches(self._plan.device))
            recalibrate(WithLoss(model, self._plan.loss), batches)
