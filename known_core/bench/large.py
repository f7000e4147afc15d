"""What jobs of large language models cost, on paper: from formulas, with the constants that were measured here.

Nothing is run. docs/large-models.md has the formulas in words, and which constants are measured and which assumed.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from known_core.costs import FITS, training_bytes

GB = 10**9


@dataclass(frozen=True)
class Constants:
    """Measured: by the entries of docs/experiments.md and docs/estimate.md that the document names. Assumed: the rest.

    Args:
        nowcast: seconds a weight, three predictions, known-v1, two cores; measured.
        hash_byte: seconds a byte; measured.
        start: seconds until a process can train; measured on two cores.
        disk: bytes a second, read or written; assumed (NVMe).
        flops: a second and GPU in bfloat16, of what the arithmetic needs; assumed (40% of an H100's 989 TFLOP/s).
        link: bytes a second that a GPU exchanges with the others; assumed (NVLink 4, 300 of 450 GB/s each way).
        gpu_bytes: memory of one; assumed (H100, H200: 141 GB).
        process_bytes: of CUDA, NCCL and the allocator on each; assumed.
    """

    nowcast: float = 21.2e-9
    hash_byte: float = 8.1e-10
    start: float = 8.5
    disk: float = 2.0 * GB
    flops: float = 4e14
    link: float = 300.0 * GB
    gpu_bytes: float = 80.0 * GB
    process_bytes: float = 3.0 * GB


@dataclass(frozen=True)
class Shape:
    """A decoder of texts.

    Args:
        inner: width of the feed-forward part; ``gated``: whether it has three matrices instead of two.
        heads: share of the keys' and values' width (grouped queries: 1/8 in the 70 B models).
        tied: whether the output layer is the embedding.
    """

    name: str
    layers: int
    width: int
    inner: int
    vocabulary: int
    heads: float = 1.0
    gated: bool = True
    tied: bool = False

    @property
    def layer(self) -> int:
        """Weights of one layer; norms and biases are left out."""
        attention = 2 * self.width**2 + 2 * round(self.heads * self.width**2)
        return attention + (3 if self.gated else 2) * self.width * self.inner

    @property
    def ends(self) -> int:
        """Weights of embedding and output layer."""
        return (1 if self.tied else 2) * self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.ends


SHAPES = (
    Shape("0.1 B", 12, 768, 3072, 50257, gated=False, tied=True),  # GPT-2
    Shape("1 B", 22, 2048, 5632, 32000, heads=1 / 8),  # TinyLlama
    Shape("7 B", 32, 4096, 11008, 32000),  # Llama 2
    Shape("13 B", 40, 5120, 13824, 32000),
    Shape("70 B", 80, 8192, 28672, 32000, heads=1 / 8),
)


@dataclass(frozen=True)
class Job:
    """What is asked for: the service's defaults for causal language models.

    Args:
        examples: of D_0. length: tokens of each.
        batch: examples of a step. micro: that a GPU holds at once.
        recurrences: 1 is x2 alone, 2 also x4, 3 also x8.
        grid: learning rates that the transfer probe tries. test: examples that a candidate is scored on.
    """

    examples: int = 10_000
    length: int = 512
    batch: int = 8
    micro: int = 1
    recurrences: int = 3
    rate: float = 0.5
    controls: int = 2  # continued, swa
    grid: int = 2
    seeds: int = 3
    probe_examples: int = 200
    probe_epochs: int = 15
    test: int = 500

    @property
    def candidates(self) -> int:
        return self.recurrences + self.controls

    @property
    def passes(self) -> float:
        """Over D_0: the fan's four trainings, and swa's one that costs as much; continued is the fan's first."""
        fan = sum(self.rate**index for index in range(4))
        return fan + round(fan)


@dataclass(frozen=True)
class Cost:
    """Of one job. Seconds by phase; bytes of GPU memory (each), of the disk at most, and sent by each GPU."""

    model: str
    parameters: int
    gpus: int
    sharding: Literal["alone", "ddp", "fsdp"]
    seconds: dict[str, float]
    gpu_bytes: float
    fits: bool
    disk_bytes: float
    network_bytes: float

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hours": self.hours}


def cost(shape: Shape, job: Job = Job(), gpus: int = 8, known: Constants = Constants()) -> Cost:
    """What a job of a model takes on one machine.

    Args:
        gpus: of the machine, all alike.
    """
    held = training_bytes(shape.parameters, shape.parameters)
    if gpus == 1:
        sharding: Literal["alone", "ddp", "fsdp"] = "alone"
    else:
        sharding = "ddp" if held < FITS * known.gpu_bytes else "fsdp"
    training, sent = _fine_tuning(shape, job.passes * job.examples, job.batch, job, gpus, known, sharding)
    probing, sent_probing = _probing(shape, job, gpus, known, sharding)
    state, output = 4 * shape.parameters, 2 * shape.parameters  # float32; bfloat16, as the model was given
    states = 5  # four of the fan, and swa's
    copied = job.controls * (state + output) / known.disk
    seconds = {
        "downloading": output * (known.hash_byte + 1 / known.disk),
        "evaluating_before": probing,
        "forgetting": training + states * (_start(known, sharding) + (output + state) / known.disk),
        "nowcasting": max(
            shape.parameters * known.nowcast * job.recurrences / 3,
            (4 * state + output + job.recurrences * output) / known.disk,
        )
        + copied,
        "evaluating_after": job.candidates * probing,
        "packaging": (1 + job.candidates) * output * known.hash_byte,
    }
    gpu_bytes = _gpu_bytes(shape, job, gpus if sharding == "fsdp" else 1, known, held)
    gpu_bytes += 4 * shape.parameters if sharding == "ddp" else 0  # the buckets in which gradients are exchanged
    disk_bytes = output + states * state + job.candidates * output  # artifacts are links
    return Cost(
        shape.name, shape.parameters, gpus, sharding, seconds, gpu_bytes, gpu_bytes <= known.gpu_bytes, disk_bytes,
        sent + (1 + job.candidates) * sent_probing,
    )  # fmt: skip


def _start(known: Constants, sharding: str) -> float:
    """Each stage's processes start anew where there are several."""
    return known.start if sharding != "alone" else 0.0


def _fine_tuning(
    shape: Shape, examples: float, batch: int, job: Job, gpus: int, known: Constants, sharding: str
) -> tuple[float, float]:
    """Seconds of arithmetic or of exchange, whichever is more, and bytes that each GPU sends."""
    used = min(gpus, batch)
    operations = (8 if sharding == "fsdp" else 6) * shape.parameters * job.length  # 8: activations computed again
    steps, parts = examples / batch, math.ceil(batch / (used * job.micro))
    share = 4 * shape.parameters * (used - 1) / used
    # FSDP2: weights gathered forward and back, gradients scattered, each part of a batch; DDP: one all-reduce a step
    sent = steps * (3 * share * parts if sharding == "fsdp" else 2 * share)
    return max(examples * operations / (used * known.flops), sent / known.link), sent


def _probing(shape: Shape, job: Job, gpus: int, known: Constants, sharding: str) -> tuple[float, float]:
    """One candidate: scored, then fine-tuned for each learning rate and seed; with DDP on one GPU alone."""
    spread = sharding == "fsdp"
    runs = job.grid + job.seeds
    examples = runs * job.probe_examples * job.probe_epochs
    seconds, sent = _fine_tuning(shape, examples, 32, job, gpus if spread else 1, known, sharding)
    scored = (1 + runs) * job.test * 2 * shape.parameters * job.length / known.flops  # spread: by all, the same
    loaded = (1 + runs) * 2 * shape.parameters / known.disk
    return seconds + scored + loaded + (_start(known, sharding) if spread else 0.0), sent


def _gpu_bytes(shape: Shape, job: Job, parts: int, known: Constants, held: float) -> float:
    """Of each: its part of what a training holds, what is gathered, and activations, all with checkpointing."""
    gathered = 4 * (shape.ends + 3 * shape.layer) if parts > 1 else 0  # the ends; two layers, and one's gradients
    tokens = job.micro * job.length
    kept = shape.layers * tokens * shape.width * 4
    inside = tokens * (8 * shape.width + 3 * shape.inner) * 4
    logits = 3 * tokens * shape.vocabulary * 4
    return known.process_bytes + held / parts + gathered + kept + inside + logits


def table(recurrences: int, gpus: tuple[int, ...] = (1, 8), known: Constants = Constants()) -> list[Cost]:
    """Every model on every number of GPUs."""
    return [cost(shape, Job(recurrences=recurrences), count, known) for shape in SHAPES for count in gpus]


def large_summary(costs: list[Cost]) -> str:
    """A Markdown table."""
    lines = [
        "| model | GPUs | | hours | of them forgetting | GPU memory each, GB | disk, GB | sent by each GPU, TB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in costs:
        memory = f"{each.gpu_bytes / GB:.0f}" + ("" if each.fits else ": too much")
        lines.append(
            f"| {each.model} | {each.gpus} | {each.sharding} | {each.hours:.1f} | "
            f"{each.seconds['forgetting'] / 3600:.1f} | {memory} | {each.disk_bytes / GB:,.0f} | "
            f"{each.network_bytes / 1e12:,.1f} |"
        )
    return "\n".join(lines)
