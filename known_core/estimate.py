"""What a job will take, before it runs: seconds, memory and disk, from a device's rates and what there is to do.

The model is in docs/decisions/0014-estimates.md, its errors in docs/estimate.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from known_core.checkpoint.reader import stored_shapes
from known_core.costs import Uncountable, training_bytes
from known_core.device import Device
from known_core.errors import KnownError
from known_core.evaluation import MAX_VALIDATION, PROBE_BATCH
from known_core.forgetting import FAN_AVERAGED, Design
from known_core.hypermodel import STATES
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.inputs import Sources, open_sources
from known_core.inspection import candidates_of, controls_of, hypermodel_of
from known_core.spec import JobSpec
from known_core.tuning import probe_micro_batch
from known_core.workload import Examples, Workload, measure_inputs

LOW, HIGH = 0.65, 1.5  # of what is expected: every job measured lay between (docs/estimate.md)
_MEMORY_LOW, _MEMORY_HIGH = 0.8, 1.35
_UNCOUNTED = 1.25  # times what is counted of a phase; found on fifteen jobs (docs/experiments.md)
_FIGURES, _TRAJECTORY_FIGURES = 5, 2  # of a report
_CACHE_BYTES = 1 << 30  # of prepared images that stay in memory


@dataclass(frozen=True)
class Range:
    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, expected: float, low: float, high: float) -> "Range":
        return cls(low * expected, expected, high * expected)

    def whole(self) -> dict[str, int]:
        return {name: round(value) for name, value in vars(self).items()}

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 1) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Estimate:
    """What a job will take.

    Args:
        seconds: of one worker. memory, gpu_memory, disk: bytes, at most at once; ``gpu_memory`` is None on a CPU.
        by_phase: seconds of each, "starting" first.
        basis: which device, calibrated when.
    """

    seconds: Range
    memory: Range
    gpu_memory: Range | None
    disk: Range
    by_phase: dict[str, float]
    basis: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds.rounded(),
            "memory_bytes": self.memory.whole(),
            "gpu_memory_bytes": self.gpu_memory.whole() if self.gpu_memory else None,
            "disk_bytes": self.disk.whole(),
            "by_phase": {name: round(seconds, 1) for name, seconds in self.by_phase.items()},
            "basis": self.basis,
        }


class NoEstimate(Exception):
    """Why there is none: ``reason`` is ``model_not_counted`` or ``inputs_not_sampled``."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


def estimate(spec: JobSpec, device: Device, sources: Sources | None = None) -> Estimate:
    """What a job will take on a device. It is one that :func:`known_core.inspection.inspect` has found in order.

    Args:
        device: calibrated (:mod:`known_core.device`); not necessarily this machine's.
        sources: the inputs by name, where they are not at the paths of the spec (yet).

    Raises:
        NoEstimate
    """
    sources = open_sources(spec) if sources is None else sources
    try:
        if spec.trajectory is not None:
            return _Trajectory(spec, device, sources).estimate()
        return _Job(measure_inputs(spec, sources, torch.device(device.type)), device).estimate()
    except Uncountable as error:
        raise NoEstimate("model_not_counted", str(error)) from error
    except KnownError as error:
        raise NoEstimate("inputs_not_sampled", str(error)) from error


def _basis(device: Device) -> str:
    return f"{device.name}, calibrated {device.calibrated_at} with torch {device.versions['torch']}"


def _nowcast_rate(spec: JobSpec, device: Device) -> float:
    """Seconds of one prediction of a weight: a hyper-model takes as long as it has parameters."""
    own, default = (
        load_hypermodel(path, "cpu").networks["fc"] for path in (hypermodel_of(spec), hypermodel_path(None))
    )
    return device.nowcast * max(1.0, _count_parameters(own) / _count_parameters(default))


def _count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _with_uncounted(start: float, counted: dict[str, float]) -> dict[str, float]:
    return {"starting": start} | {phase: _UNCOUNTED * seconds for phase, seconds in counted.items()}


class _Trajectory:
    def __init__(self, spec: JobSpec, device: Device, sources: Sources) -> None:
        self._spec, self._device = spec, device
        self._weights = sum(map(math.prod, stored_shapes(sources["state-0"]).values()))
        sizes = [source.size(name) for source in sources.values() for name in source.names()]
        self._bytes, self._each = sum(sizes), sum(sizes) / len(sources)

    def estimate(self) -> Estimate:
        device, outputs = self._device, len(candidates_of(self._spec))
        written = outputs * self._each
        counted = {
            "downloading": self._bytes * (device.hash_byte + device.write_byte),
            "nowcasting": self._weights * outputs * _nowcast_rate(self._spec, device) + written * device.write_byte,
            "charting": self._weights * (STATES + outputs) * device.load_weight,
            "packaging": written * device.hash_byte + _TRAJECTORY_FIGURES * device.figure,
        }
        by_phase = _with_uncounted(device.start, counted)
        return Estimate(
            Range.around(sum(by_phase.values()), LOW, HIGH),
            Range.around(device.memory_bytes + (64 << 20), _MEMORY_LOW, _MEMORY_HIGH),
            Range.around(float(device.accelerator_bytes + (256 << 20)), _MEMORY_LOW, _MEMORY_HIGH)
            if device.type == "cuda" else None,
            Range.around(self._bytes + written, 0.9, 1.1),
            by_phase,
            _basis(device),
        )  # fmt: skip


class _Job:
    """The phases of :mod:`known_core.pipeline`, each the sum of its parts."""

    def __init__(self, work: Workload, device: Device) -> None:
        self._work, self._device, self._costs = work, device, work.costs
        self._forgetting, self._evaluation = work.spec.forgetting, work.spec.evaluation
        self._design: Design = load_hypermodel(hypermodel_of(work.spec), "cpu").design
        self._candidates = candidates_of(work.spec)

    def estimate(self) -> Estimate:
        start = self._device.start + min(self._work.input_files, 2000) * self._device.image / 2
        counted = {
            "downloading": self._download(),
            "evaluating_before": self._ready(self._work.evaluation) + self._ready_probe() + self._evaluate(),
            "forgetting": self._ready(self._work.d0) + self._forget(),
            "nowcasting": self._nowcast(),
            "calibrating": self._calibrate(),
            "evaluating_after": len(self._candidates) * self._evaluate(),
            "charting": self._chart(),
            "packaging": self._package(),
        }
        by_phase = _with_uncounted(start, counted)
        on_gpu = self._device.type == "cuda"
        return Estimate(
            Range.around(sum(by_phase.values()), LOW, HIGH),
            Range.around(self._memory(on_host=not on_gpu), _MEMORY_LOW, _MEMORY_HIGH),
            Range.around(self._device.accelerator_bytes + self._tensors(), _MEMORY_LOW, _MEMORY_HIGH)
            if on_gpu
            else None,
            Range.around(self._disk(), 0.9, 1.1),
            by_phase,
            _basis(self._device),
        )

    def _download(self) -> float:
        """Hashed and unpacked, and, where they are texts, made into tokens."""
        device, work = self._device, self._work
        files = work.input_bytes * (device.hash_byte + device.write_byte) + work.input_files * device.file
        texts = [part for part in (work.d0, work.evaluation, work.pool, work.test) if part.characters]
        if self._work.spec.downstream is None:
            texts = texts[:2]
        return files + sum(part.count * (device.text + part.characters * device.character) for part in texts)

    def _ready(self, examples: Examples) -> float:
        """Images decoded and prepared, the first time they are asked for."""
        if not examples.pixels:
            return 0.0
        device = self._device
        out = examples.each_bytes / 12  # pixels of the network's: three float32
        return examples.count * (device.image + examples.pixels * device.image_in + out * device.image_out)

    def _ready_probe(self) -> float:
        if self._work.spec.downstream is None:  # they are halves of the evaluation examples
            return 0.0
        return self._ready(self._work.pool) + self._ready(self._work.test)

    def _load(self, *, new_head: bool = False) -> float:
        device, costs = self._device, self._costs
        weights = costs.parameters * device.load_weight
        if self._work.network_library in ("transformers", "peft"):
            once = device.model_call + costs.tensors * device.model_tensor
            return (2 if new_head else 1) * once + weights
        return device.load_call + costs.tensors * device.load_tensor + weights

    def _train(self, examples: int, epochs: int, batch: int, micro: int | None = None, averaged: float = 0.0) -> float:
        """One training of :func:`known_core.training.fine_tune`."""
        device, costs = self._device, self._costs
        steps = epochs * math.ceil(examples / batch)
        each = device.step + costs.trained_tensors * device.tensor + costs.trained * device.weight
        mean = costs.tensors * device.mean_tensor + costs.parameters * device.mean_weight
        passes = self._passes(examples, min(batch, micro or batch), training=True)
        if self._forgetting.gradient_checkpointing:
            passes *= 4 / 3  # a second pass forward
        return device.training_call + steps * (each + averaged * mean) + epochs * (passes + examples * device.example)

    def _infer(self, examples: int, batch: int) -> float:
        return examples * self._device.example / 2 + self._passes(examples, batch, training=False)

    def _passes(self, examples: int, batch: int, *, training: bool) -> float:
        full, rest = divmod(max(0, examples), batch)
        return sum(
            count * self._device.seconds(self._costs.work(size, training=training), training=training)
            for count, size in ((full, batch), (1 if rest else 0, rest))
            if count
        )

    def _score(self, examples: int) -> float:
        return self._infer(examples, self._work.evaluation_batch)

    def _evaluate(self) -> float:
        """One candidate: on the task itself, then fine-tuned over the learning rates and over the seeds."""
        settings, pool = self._evaluation, self._work.pool.count
        grid = len(settings.probe_learning_rates or ())
        chosen = max(1, min(settings.probe_examples, pool * 3 // 4))
        one = self._load(new_head=True) + self._train(
            chosen, settings.probe_epochs, PROBE_BATCH, probe_micro_batch(self._forgetting)
        )
        validation = grid * (one + self._score(min(MAX_VALIDATION, pool - chosen))) if grid > 1 else 0.0
        reports = settings.seeds * (one + self._score(self._work.test.count))
        return self._load() + self._score(self._work.evaluation.count) + validation + reports

    def _stages(self) -> Iterator[tuple[str, int, int]]:
        """The trainings: of a chain, a fan, or all at once; their examples and epochs."""
        settings, count = self._forgetting, self._work.d0.count
        begin = 1 if self._design == "chain" else 0
        for stage in range(settings.states - 1):
            yield self._design, max(1, round(count * settings.rate ** (begin + stage))), settings.epochs_per_stage
        controls = self._work.spec.nowcast.controls
        if "continued" in controls and self._design == "chain":
            yield "fan", count, settings.epochs_per_stage
        if "swa" in controls:
            cost = sum(settings.rate**index for index in range(settings.states - 1))
            yield "swa", count, round(settings.epochs_per_stage * cost)

    def _forget(self) -> float:
        settings, total = self._forgetting, 0.0
        for training, examples, epochs in self._stages():
            averaged = 0.0 if training == "chain" else FAN_AVERAGED
            total += self._load() + self._write(self._state_bytes())
            total += self._train(examples, epochs, settings.batch_size or 1, settings.micro_batch_size, averaged)
            total += self._score(self._work.evaluation.count)
            if averaged:
                total += self._recalibrate()
        return total

    def _state_bytes(self) -> int:
        """Of one training's end, in float32; of an adapter alone where there is one."""
        return 4 * (self._costs.trained if self._work.network_library == "peft" else self._costs.parameters)

    def _recalibrate(self) -> float:
        return self._infer(self._work.d0.count, self._forgetting.batch_size or 1) if self._work.batch_norm else 0.0

    def _write(self, size: float) -> float:
        return 3 * self._device.file + size * self._device.write_byte

    def _nowcast(self) -> float:
        outputs, predicted = len(self._candidates), len(self._candidates) - len(controls_of(self._work.spec))
        rate = _nowcast_rate(self._work.spec, self._device)
        return predicted * self._costs.trained * rate + outputs * self._write(self._work.checkpoint_bytes)

    def _calibrate(self) -> float:
        written = self._write(2 * self._work.checkpoint_bytes) if self._work.batch_norm else 0.0
        return len(self._candidates) * (self._load() + self._recalibrate() + written)

    def _chart(self) -> float:
        """Weight changes and the plane: every checkpoint read; the loss over it: at each, and over a grid."""
        device, costs, settings = self._device, self._costs, self._evaluation.landscape
        checkpoints = STATES + len(self._candidates)
        read = checkpoints * costs.parameters * device.load_weight
        if not settings.points:
            return read
        passes = self._passes(
            min(settings.examples, self._work.evaluation.count), self._work.evaluation_batch, training=False
        )
        moved = costs.trained_tensors * device.mean_tensor + 3 * costs.trained * device.mean_weight
        point = moved + passes * (2 if self._work.batch_norm else 1)  # its statistics are estimated again
        return read + checkpoints * (self._load() + passes) + settings.points**2 * point

    def _package(self) -> float:
        outputs = 1 + len(self._candidates)
        files = outputs * (self._work.checkpoint_bytes * self._device.hash_byte + 5 * self._device.file)
        return files + _FIGURES * self._device.figure

    def _tensors(self) -> float:
        """What one training holds beside the process itself: weights, gradients, AdamW's two means, the average, and
        what the pass forward keeps."""
        costs = self._costs
        sizes = [self._forgetting.micro_batch_size or self._forgetting.batch_size or 1, PROBE_BATCH]
        kept = costs.saved * max(sizes)
        if self._forgetting.gradient_checkpointing:
            kept /= math.sqrt(max(1, costs.tensors / 10))
        return training_bytes(costs.parameters, costs.trained) + kept

    def _memory(self, *, on_host: bool) -> float:
        parts = (self._work.d0, self._work.evaluation, self._work.pool, self._work.test)
        prepared = sum(min(_CACHE_BYTES, part.count * part.each_bytes) for part in parts)
        held = self._tensors() if on_host else 8 * self._costs.parameters
        return self._device.memory_bytes + prepared + held

    def _disk(self) -> float:
        """Inputs as they are unpacked, every training's state, every candidate, and once more where statistics differ;
        artifacts are links to them."""
        states = len(list(self._stages())) * self._state_bytes()
        outputs = len(self._candidates) * self._work.checkpoint_bytes * (2 if self._work.batch_norm else 1)
        return self._work.input_bytes + states + outputs
