"""The whole job as phases with events: resumable, and ignorant of HTTP, Celery and Redis.

    downloading -> evaluating_before -> forgetting (k of n) -> nowcasting
                -> calibrating -> evaluating_after -> charting -> packaging

Each phase's output is kept under a hash of its inputs (:mod:`known_core.stages`), so a job that is killed and run again
goes on where it was, and on a CPU ends with the same bytes.
"""

import tempfile
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from known_core import evaluation
from known_core.baselines import Continued, MatchedShrink, Mean
from known_core.changes import weight_changes
from known_core.checkpoint import Checkpoint, TensorWriter
from known_core.comparison import UNCHANGED, ProbeResult, compare, most_gained, select
from known_core.errors import KnownError
from known_core.events import Emit, Reporter
from known_core.files import atomic_folder, link_or_copy, read_json, sha256_file, sha256_tree, write_json
from known_core.forgetting import Indices, nested_subsets, subset_hash
from known_core.hypermodel import HyperModel
from known_core.hypermodels import load_hypermodel
from known_core.inputs import file_names, lay_out
from known_core.inspection import TRAINED_FOR, Trajectory, candidates_of, controls_of, hypermodel_of, inspect
from known_core.landscape import loss_surface
from known_core.manifest import processor, write_manifest
from known_core.memory import free_memory, halving, ran_out_of_memory
from known_core.nowcast import help_nowcast, nowcast, plan_shards, predicted_kinds
from known_core.plane import Plane, find_plane
from known_core.report import build_report, describe_trajectory, render_markdown
from known_core.report.build import delivered_of_trajectory
from known_core.shortage import out_of_memory, said_clearly
from known_core.spec import Control, ForgettingSettings, JobSpec, candidate_names, paths_of
from known_core.stage_work import Place, Training, measure, measure_in_team, recalibrate_on_d0, train, train_in_team
from known_core.stages import Stages
from known_core.tasks.base import Scores
from known_core.tasks.opened import OpenTask
from known_core.team import Team, TeamWish
from known_core.training import default_device
from known_core.tuning import choose_team, fit_to_memory, less_memory, probe_micro_batch, untried, with_defaults

_LESS_MEMORY = "less-memory"
_TRAINS = ("evaluating_before", "forgetting", "evaluating_after")  # phases that hold micro batches in memory
_ALONE = TeamWish()
_CONTROL_OF = {training: control for control, training in TRAINED_FOR.items()}
_SHARED_WORK = "nowcast.json"  # in the job's folder: what a helper has to know


def run(
    spec: JobSpec, folder: Path, emit: Emit, facts: Mapping[str, Any] | None = None, wish: TeamWish = _ALONE
) -> Path:
    """Run a job, or the rest of it.

    Args:
        spec: what to do.
        folder: the job's own; ``work`` and ``artifacts`` are made below it.
        emit: takes each event.
        facts: more of what the manifest says of the run; nothing of the result depends on them.
        wish: how many processes train its stages together.

    Returns:
        The artifacts folder: every candidate, report.json, report.md, report.html and manifest.json.

    Raises:
        KnownError: what the inputs or the training did wrong.
        ProcessDied: where one of several processes that trained together was killed; run it again.
    """
    with said_clearly(folder):
        summary = inspect(spec)
        emit({"type": "status", "status": "running"})
        return _Run(spec, folder, Reporter(emit), summary, facts or {}, wish).run()


def help_run(folder: Path, turn: int, helpers: int) -> int:
    """Help with the nowcast of a job that another process runs.

    Args:
        folder: the job's own, on storage that both see under the same path.
        turn, helpers: see :func:`~known_core.nowcast.help_nowcast`.

    Returns:
        How many shards were written.

    Raises:
        KnownError: ``helper_differs`` where this machine has another hyper-model or engine: its bytes would differ.
    """
    work = read_json(folder / _SHARED_WORK)
    path = Path(work["hypermodel"]["path"])
    known = load_hypermodel(path, default_device())
    here = {"hypermodel": sha256_file(path), "engine": known.engine.name}
    there = {"hypermodel": work["hypermodel"]["sha256"], "engine": work["engine"]}
    if here != there:
        raise KnownError(
            "helper_differs",
            f"the job runs with {there}, this machine has {here}",
            "Give all workers the same settings.",
        )
    states = [Checkpoint(folder / state) for state in work["states"]]
    outputs = [folder / output for output in work["outputs"]]
    return help_nowcast(
        states, known, outputs, work["rate"], max_shard_size=work["max_shard_size"], turn=turn, helpers=helpers
    )


class _Run:
    def __init__(
        self, spec: JobSpec, folder: Path, reporter: Reporter, summary: dict[str, Any], facts: Mapping[str, Any],
        wish: TeamWish,
    ) -> None:  # fmt: skip
        self._spec, self._folder, self._reporter, self._summary = spec, folder, reporter, summary
        self._facts, self._wish = facts, wish
        self._stages = Stages(folder / "work")
        self._device = default_device()
        self._names = candidates_of(spec)
        self._hypermodel = hypermodel_of(spec)
        self._known = load_hypermodel(self._hypermodel, self._device)
        self._subsets: list[Indices] = []
        self._team: Team | None = None  # that trains the stages; None: this process alone
        self._why_alone: str | None = None  # although more were asked for
        self._ran_out: list[dict[str, Any]] = []  # what memory ran out with, for the manifest

    def run(self) -> Path:
        artifacts = self._folder / "artifacts"
        if (artifacts / "manifest.json").is_file():
            return artifacts
        laid_out = self._download()
        if self._spec.trajectory is not None:
            states = [Checkpoint(laid_out / f"state-{index}") for index in range(len(self._spec.trajectory))]
            self._package_trajectory(states, self._nowcast({self._known.design: states}), artifacts)
            return artifacts
        self._place = Place(self._spec, self._folder, laid_out)
        original = self._place.original
        original.check_finite()
        task = self._place.open(self._device)
        asked = self._spec.forgetting
        self._spec = with_defaults(self._spec, task, self._device)
        self._choose_team(task, original)
        self._spec = self._with_settings(self._spec, task, original)
        while True:
            try:
                return self._enhance(task, original, laid_out, artifacts)
            except Exception as error:
                if self._reporter.phase_name not in _TRAINS or not ran_out_of_memory(error):
                    raise
                said = str(error)
            free_memory()
            self._use_less_memory(task, original, asked, said)

    def _choose_team(self, task: OpenTask, original: Checkpoint) -> None:
        """Decide in how many processes the stages are trained, and whether the network is spread over them."""
        forgetting = self._spec.forgetting
        self._subsets = nested_subsets(task.d0.labels, forgetting.rate, forgetting.states, forgetting.seed)
        trained = self._subsets[1:] if self._known.design == "chain" else self._subsets[:-1]
        self._team, self._why_alone = choose_team(
            self._wish, task, original, forgetting, len(trained[-1]), self._device
        )
        if self._team is not None and self._team.sharding == "fsdp":
            landscape = self._spec.evaluation.landscape.model_copy(update={"points": 0})  # no process holds the network
            evaluated = self._spec.evaluation.model_copy(update={"landscape": landscape})
            self._spec = self._spec.model_copy(update={"evaluation": evaluated})

    @property
    def _spread(self) -> Team | None:
        """Those that each hold a part of the network; None where one process can hold it."""
        return self._team if self._team is not None and self._team.sharding == "fsdp" else None

    def _enhance(self, task: OpenTask, original: Checkpoint, laid_out: Path, artifacts: Path) -> Path:
        before = self._evaluate(task, {UNCHANGED: original}, "evaluating_before")
        trained = self._forget(task, original, laid_out)
        candidates = self._calibrate(task, self._nowcast(trained))
        results = before | self._evaluate(task, candidates, "evaluating_after")
        shown = self._shown(results)
        charts = self._chart(trained[self._known.design], candidates, shown, task)
        self._package(task, {UNCHANGED: original, **candidates}, results, charts, artifacts)
        return artifacts

    def _download(self) -> Path:
        self._reporter.phase("downloading")
        self._sources = {name: sha256_tree(path) for name, path in paths_of(self._spec).items()}
        read = self._spec.model_dump(mode="json", include={"config", "data", "downstream_data", "task", "file_names"})
        facts = {"sources": self._sources, "max_length": self._spec.forgetting.max_length, **read}
        return self._stages.run("inputs", facts, lambda out: lay_out(self._spec, out))

    def _with_settings(self, spec: JobSpec, task: OpenTask, original: Checkpoint) -> JobSpec:
        """What a trial finds is a stage of its own, so that a job that goes on goes on with it."""

        def work(out: Path) -> None:
            spread = self._spread is not None  # then nobody can try; where memory runs out, half as many are next
            found = untried(spec.forgetting) if spread else fit_to_memory(task, original, spec.forgetting, self._device)
            write_json(out / "settings.json", found)

        facts = {"inputs": original.path.parent.name, "forgetting": spec.forgetting.model_dump(mode="json")}
        found = read_json(self._stages.run("settings", facts, work) / "settings.json")
        spec = spec.model_copy(update={"forgetting": spec.forgetting.model_copy(update=found)})
        while less := self._stages.find(_LESS_MEMORY, _than(spec)):  # an earlier run of this job ran out of memory
            spec = self._with_less(spec, less)
        return spec

    def _use_less_memory(self, task: OpenTask, original: Checkpoint, asked: ForgettingSettings, said: str) -> None:
        """Go on with fewer examples in memory at once; the batch stays what it is. Every training of the job is done
        with the same, so that the manifest's settings give these bytes again."""
        found = less_memory(task, original, self._spec.forgetting, asked)
        if found is None:
            raise out_of_memory(said)
        phase = self._reporter.phase_name
        self._reporter.less_memory(found)
        facts = {"phase": phase, "said": said[:200], "found": found}
        less = self._stages.run(_LESS_MEMORY, _than(self._spec), lambda out: write_json(out / "facts.json", facts))
        self._spec = self._with_less(self._spec, less)

    def _with_less(self, spec: JobSpec, less: Path) -> JobSpec:
        facts = read_json(less / "facts.json")
        self._ran_out.append(facts)
        return spec.model_copy(update={"forgetting": spec.forgetting.model_copy(update=facts["found"])})

    def _evaluate(self, task: OpenTask, candidates: dict[str, Checkpoint], phase: str) -> dict[str, Path]:
        self._reporter.phase(phase)
        settings, forgetting = self._spec.evaluation, self._spec.forgetting
        memory: dict[str, Any] = {
            "micro_batch_size": probe_micro_batch(forgetting),
            "gradient_checkpointing": bool(forgetting.gradient_checkpointing),
        }
        total = len(candidates) * evaluation.probe_runs(settings)
        done = 0

        def on_run() -> None:
            nonlocal done
            done += 1
            self._reporter.step(done, total)

        results = {}
        for index, (name, checkpoint) in enumerate(candidates.items()):

            def work(out: Path, checkpoint: Checkpoint = checkpoint) -> None:
                if self._spread is None:
                    measure(
                        task, checkpoint.path, out, settings, forgetting.seed, self._device, on_run, memory
                    )  # fmt: skip
                else:
                    self._spread.run(
                        measure_in_team, on_run, self._place, checkpoint.path, out, settings, forgetting.seed, memory
                    )

            inputs = {
                "candidate": checkpoint.path.parent.name,
                "settings": settings.model_dump(mode="json", exclude={"select", "landscape"}),
                "seed": forgetting.seed,
                "memory": memory,
            }
            results[name] = self._stages.run(f"evaluation-{name}", inputs, work)
            done = (index + 1) * evaluation.probe_runs(settings)
            accuracy = _read_scores(results[name]).correct.mean()
            self._reporter.metric("accuracy", float(accuracy), candidate=name)
        return results

    def _forget(self, task: OpenTask, original: Checkpoint, laid_out: Path) -> dict[Trajectory, list[Checkpoint]]:
        """The states of each training that a candidate needs, Θ_0 first."""
        settings = self._spec.forgetting
        self._state_accuracy: list[float] = []
        self._losses: list[dict[str, Any]] = []
        stages: list[tuple[Trajectory, int]] = [(self._known.design, stage) for stage in range(settings.states - 1)]
        for control, training in TRAINED_FOR.items():
            if control in self._spec.nowcast.controls and (training, 0) not in stages:
                stages.append((training, 0))
        states: dict[Trajectory, list[Checkpoint]] = {"chain": [original], "fan": [original], "swa": [original]}
        previous = laid_out.name
        for index, (training, stage) in enumerate(stages):
            is_state = training == self._known.design
            name = f"state {stage + 1}" if is_state else _CONTROL_OF[training]
            self._reporter.phase("forgetting", f"{index + 1} of {len(stages)}" + ("" if is_state else f", {name}"))
            start, key = (states["chain"][-1], previous) if training == "chain" else (original, laid_out.name)
            folder = self._train_on(task, training, stage, start, key)
            states[training].append(Checkpoint(folder / "state"))
            previous = folder.name
            metrics = read_json(folder / "metrics.json")
            accuracy = metrics["accuracy"]
            self._reporter.metric("accuracy", accuracy, **({"state": stage + 1} if is_state else {"candidate": name}))
            examples = len(self._subset(training, stage))
            self._losses.append({"name": name, "examples": examples, "curve": metrics.get("curve", [])})
            if is_state:
                self._state_accuracy.append(accuracy)
        return states

    def _train_on(self, task: OpenTask, training: Trajectory, stage: int, start: Checkpoint, start_key: str) -> Path:
        """One stage: Θ_(stage+1) of a chain from the state before it; Φ_stage of a fan, or all of swa, from Θ_0."""
        settings = self._spec.forgetting
        subset = self._subset(training, stage)
        fan_cost = sum(settings.rate**index for index in range(settings.states - 1))
        epochs = round(settings.epochs_per_stage * (fan_cost if training == "swa" else 1))
        seed, averaged = settings.seed + stage + 1, training != "chain"
        todo = Training(start.path, subset.tolist(), epochs, seed, averaged, settings)

        def work(out: Path) -> None:
            if self._team is None:
                train(task, todo, out, self._device, self._reporter.step)
            else:
                free_memory()
                self._team.run(train_in_team, self._reporter.step, self._place, todo, out)

        inputs = {"start": start_key, "subset": subset_hash(subset), "settings": settings.model_dump(mode="json")}
        return self._stages.run(f"{training}-{stage}", inputs, work)

    def _subset(self, training: Trajectory, stage: int) -> Indices:
        return self._subsets[stage + 1 if training == "chain" else stage]

    def _nowcast(self, trained: dict[Trajectory, list[Checkpoint]]) -> Path:
        self._reporter.phase("nowcasting")
        settings, rate, shard_size = self._spec.nowcast, self._spec.forgetting.rate, self._spec.output.max_shard_size
        design = self._known.design
        controls: dict[Control, tuple[HyperModel, Trajectory]] = {
            "continued": (Continued(), "fan"),
            "swa": (Continued(), "swa"),
            "mean": (Mean(design), design),
            "shrink": (MatchedShrink(self._known, settings.recurrences), design),
        }

        chosen = controls_of(self._spec)

        def progress(index: int) -> Callable[[int, int], None]:
            """Bytes of one nowcast of all that this phase makes."""
            return lambda done, total: self._reporter.step(index * total + done, (1 + len(chosen)) * total)

        def work(out: Path) -> None:
            outputs = [out / name for name in candidate_names(rate, settings.recurrences)]
            self._call_helpers(trained[design], outputs)
            counts = nowcast(
                trained[design], self._known, outputs, rate, max_shard_size=shard_size, on_bytes=progress(0)
            )
            for index, name in enumerate(chosen, start=1):
                control, training = controls[name]
                states = trained[training][: control.states]
                nowcast(states, control, [out / name], rate, max_shard_size=shard_size, on_bytes=progress(index))
            write_json(out / "counts.json", counts)

        inputs = {
            "states": {training: [state.path.parent.name for state in states] for training, states in trained.items()},
            "hypermodel": sha256_file(self._hypermodel),
            "engine": self._known.engine.name,
            "names": self._names,
            "rate": rate,
            "max_shard_size": shard_size,
        }
        return self._stages.run("nowcast", inputs, work, resumes=True)

    def _call_helpers(self, states: list[Checkpoint], outputs: list[Path]) -> None:
        """Where there are several shards, say that others may write them too (:func:`help_run`)."""
        rate, shard_size = self._spec.forgetting.rate, self._spec.output.max_shard_size
        shards = len(plan_shards(states, self._known, outputs, rate, shard_size).layout.shards)
        if shards < 2:
            return
        for output in outputs:
            output.mkdir(parents=True, exist_ok=True)  # a helper without it takes the nowcast for ended
        facts = {
            "states": [state.path.relative_to(self._folder).as_posix() for state in states],
            "outputs": [output.relative_to(self._folder).as_posix() for output in outputs],
            "rate": rate,
            "max_shard_size": shard_size,
            "hypermodel": {"path": str(self._hypermodel), "sha256": sha256_file(self._hypermodel)},
            "engine": self._known.engine.name,
        }
        write_json(self._folder / _SHARED_WORK, facts)
        self._reporter.emit({"type": "fan_out", "shards": shards})

    def _calibrate(self, task: OpenTask, predicted: Path) -> dict[str, Checkpoint]:
        self._reporter.phase("calibrating")
        self._weights_predicted = read_json(predicted / "counts.json")

        def work(out: Path) -> None:
            for index, name in enumerate(self._names):
                checkpoint = Checkpoint(predicted / name)
                if task.has_batch_norm:
                    model = task.load(checkpoint).to(self._device)
                    recalibrate_on_d0(task, model, self._spec.forgetting, self._device)
                    _write_with_statistics(checkpoint, model.cpu(), task, out / name)
                else:
                    _link_tree(checkpoint.path, out / name)
                Checkpoint(out / name).check_finite()
                self._reporter.step(index + 1, len(self._names))

        folder = self._stages.run("calibration", {"predicted": predicted.name}, work)
        return {name: Checkpoint(folder / name) for name in self._names}

    def _shown(self, results: dict[str, Path]) -> str:
        """The candidate whose weight changes are shown: what is delivered, or what gained most where nothing is."""
        gains = compare({name: _read_probe(folder).accuracy for name, folder in results.items()})
        selected = select(gains, self._spec.evaluation.select)
        return most_gained(gains) if selected == UNCHANGED else selected

    def _chart(
        self, states: list[Checkpoint], candidates: dict[str, Checkpoint], shown: str, task: OpenTask | None = None
    ) -> dict[str, Any]:
        """What the report's figures of weights show: the changes of one candidate, and the plane of the trajectory.

        Args:
            states: the given weights first.
            task: what the loss over the plane is measured with; None where there is no data.
        """
        self._reporter.phase("charting")
        original, rest = states[0], states[1:]

        def work(out: Path) -> None:
            kinds = predicted_kinds(original, self._known)
            write_json(out / "changes.json", weight_changes(original, candidates[shown], kinds))
            plane = find_plane(original, rest, candidates)
            write_json(out / "plane.json", plane and plane.as_dict())

        facts = {
            "states": [state.path.parent.name for state in states],
            "candidates": {name: checkpoint.path.parent.name for name, checkpoint in candidates.items()},
            "shown": shown,
        }
        folder = self._stages.run("plane", facts, work)
        plane = read_json(folder / "plane.json")
        if plane is not None:
            plane["surface"] = self._surface(task, Plane.from_dict(plane), original, rest, candidates, folder.name)
        return {"weight_changes": {"candidate": shown, **read_json(folder / "changes.json")}, "plane": plane}

    def _surface(
        self, task: OpenTask | None, plane: Plane, original: Checkpoint, states: list[Checkpoint],
        candidates: dict[str, Checkpoint], key: str,
    ) -> dict[str, Any] | None:  # fmt: skip
        """The loss over the plane; None where it was not asked for, and where memory does not do for a mere figure."""
        settings, seed = self._spec.evaluation.landscape, self._spec.forgetting.seed
        if task is None or not settings.points:
            return None

        def measure(size: int) -> dict[str, Any]:
            return loss_surface(
                task, plane, original, states, candidates, settings,
                seed=seed, device=self._device, batch_size=size, on_point=self._reporter.step,
            )  # fmt: skip

        def work(out: Path) -> None:
            try:
                surface = halving(task.task.defaults.evaluation_batch_size, measure)
            except Exception as error:
                if not ran_out_of_memory(error):
                    raise
                surface = None
            write_json(out / "surface.json", surface)

        facts = {"plane": key, "settings": settings.model_dump(mode="json"), "seed": seed}
        surface: dict[str, Any] | None = read_json(self._stages.run("surface", facts, work) / "surface.json")
        return surface

    def _package(
        self,
        task: OpenTask,
        candidates: dict[str, Checkpoint],
        results: dict[str, Path],
        charts: dict[str, Any],
        artifacts: Path,
    ) -> None:
        self._reporter.phase("packaging")
        begun = time.monotonic()
        probes = {name: _read_probe(folder) for name, folder in results.items()}
        scores = {name: _read_scores(folder) for name, folder in results.items()}
        trained_on = self._subsets[1:] if self._known.design == "chain" else self._subsets[:-1]
        report = build_report(
            self._spec,
            inputs=self._summary | task.summary() | {"sources": self._origins()},
            hypermodel=self._hypermodel_facts(),
            weights_predicted=self._weights_predicted,
            forgetting_accuracy=[float(scores[UNCHANGED].correct.mean()), *self._state_accuracy],
            forgetting_examples=[len(subset) for subset in (self._subsets[0], *trained_on)],
            scores=scores,
            probes=probes,
            losses=self._losses,
            **charts,
        )
        with atomic_folder(artifacts) as temporary:
            for name, checkpoint in candidates.items():
                _link_tree(checkpoint.path, temporary / name)
            self._write_report(temporary, report, begun)

    def _package_trajectory(self, states: list[Checkpoint], predicted: Path, artifacts: Path) -> None:
        candidates = {name: Checkpoint(predicted / name) for name in self._names}
        charts = self._chart(states, candidates, delivered_of_trajectory(self._spec, self._names))
        self._reporter.phase("packaging")
        begun = time.monotonic()
        report = describe_trajectory(
            self._spec,
            inputs=self._summary | {"sources": self._origins()},
            hypermodel=self._hypermodel_facts(),
            weights_predicted=read_json(predicted / "counts.json"),
            names=self._names,
            **charts,
        )
        with atomic_folder(artifacts) as temporary:
            for name in self._names:
                _link_tree(predicted / name, temporary / name)
            self._write_report(temporary, report, begun)

    def _write_report(self, folder: Path, report: dict[str, Any], begun: float) -> None:
        from known_core.report.html import render_html  # here, so that who only inspects a job loads no matplotlib

        write_json(folder / "report.json", report)
        (folder / "report.md").write_text(render_markdown(report), encoding="utf-8")
        (folder / "report.html").write_text(render_html(report), encoding="utf-8")
        paths = {"model", "base", "dataset", "downstream", "trajectory"}
        write_manifest(
            folder,
            {
                "spec": self._spec.model_dump(mode="json", exclude=paths) | {"file_names": file_names(self._spec)},
                "inputs_sha256": self._sources,
                "hypermodel": report["hypermodel"],
                "subsets": [{"examples": len(subset), "sha256": subset_hash(subset)} for subset in self._subsets],
                "ran_out_of_memory": self._ran_out,
                "trained_by": self._trained_by(),
                "seconds": self._stages.seconds | {"packaging": time.monotonic() - begun},
                "device": str(self._device),
                "processor": processor(self._device),
                "engine": self._known.engine.name,
                **self._facts,
            },
        )

    def _trained_by(self) -> dict[str, Any]:
        if self._team is not None:
            return asdict(self._team)
        return {"processes": 1, "sharding": None, **({"because": self._why_alone} if self._why_alone else {})}

    def _hypermodel_facts(self) -> dict[str, str]:
        sha256 = sha256_file(self._hypermodel)
        return {"name": self._hypermodel.stem, "sha256": sha256, "design": self._known.design}

    def _origins(self) -> dict[str, Any]:
        """Where each input came from, and its sha256."""
        return {name: {**self._spec.origins.get(name, {}), "sha256": sha256} for name, sha256 in self._sources.items()}


def _than(spec: JobSpec) -> dict[str, Any]:
    """What a stage of less memory depends on: all that memory ran out with."""
    return {"settings": spec.forgetting.model_dump(mode="json")}


def _read_scores(folder: Path) -> Scores:
    scores = read_json(folder / "scores.json")
    return Scores(np.array(scores["correct"]), np.array(scores["loss"]))


def _read_probe(folder: Path) -> ProbeResult:
    return ProbeResult(**read_json(folder / "probe.json"))


def _write_with_statistics(checkpoint: Checkpoint, model: nn.Module, task: OpenTask, target: Path) -> None:
    """The checkpoint with the running statistics of ``model``; every other byte as it was."""
    _link_tree(checkpoint.path, target, without=checkpoint.headers)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        task.save(model, Path(folder), checkpoint)
        measured = Checkpoint(Path(folder))
        for file, header in checkpoint.headers.items():
            with TensorWriter(target / file, header) as writer:
                for stored in header.tensors:
                    name = checkpoint.logical_name(stored)
                    tensor = checkpoint.read(name)
                    if name.endswith(("running_mean", "running_var")):
                        tensor = measured.read(name).to(tensor.dtype)
                    writer.write(stored, tensor)


def _link_tree(source: Path, target: Path, without: Container[str] = ()) -> None:
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source).as_posix()
        if file.is_file() and name not in without:
            link_or_copy(file, target / name)
