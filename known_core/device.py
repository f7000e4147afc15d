"""What this machine's device does in a second, from a calibration of some seconds: networks, files, texts, images.

``python -m known_core.device FOLDER`` prints it as JSON.
"""

import gc
import hashlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import nnls
from torch import Tensor, nn

import known_core
from known_core.costs import KINDS, Costs, count
from known_core.figures import render_svg
from known_core.files import fsync_directory
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.networks import build_network, build_text_network
from known_core.nowcast import predict_tensor
from known_core.training import RunningMean, default_device, fine_tune

_REFERENCES = (  # architecture, width, side in pixels or tokens, batch sizes: operators of every kind, few and many
    ("cnn-batch", 4, 8, (8, 64)), ("cnn-batch", 16, 28, (8,)), ("cnn-plain", 32, 32, (16,)),
    ("resnet", 16, 28, (4, 32)), ("resnet", 48, 32, (4,)), ("densenet", 16, 28, (8,)),
    ("mobilenetv2", 16, 28, (4, 32)), ("mobilenetv2", 32, 32, (4,)), ("shufflenetv2", 16, 28, (8,)),
    ("vit", 16, 28, (4, 32)), ("vit", 64, 28, (8,)), ("mixer", 16, 28, (16,)),
    ("text", 4, 16, (8, 32)), ("text", 16, 24, (8, 32)), ("text", 64, 64, (8,)),
)  # fmt: skip
_DRAWN = {  # of a report
    "forgetting_accuracy": [0.9, 0.8, 0.7, 0.6, 0.5],
    "forgetting_examples": [800, 400, 200, 100, 50],
    "own_task": {"unchanged": {"accuracy": 0.9}, "x2": {"accuracy": 0.9}},
}
_SHORTEST_S = 0.02  # a timing is of so many passes as take this long
_TRIED = 3
_clock = time.perf_counter


@dataclass(frozen=True)
class Device:
    """Rates of one device. Seconds for one of what a field is named for.

    Args:
        name: for people. type: "cpu" or "cuda".
        calibrated_at: RFC 3339. versions: of this package and torch; another version is calibrated anew.
        precision: of the arithmetic that it was calibrated with: the one that jobs take by default.
        training, inference: by kind of :data:`known_core.costs.KINDS`: of a pass forward and back, and of one forward
            alone.
        spread: how far off these are on the reference networks: the standard deviation of the logarithm.
        training_call: what one training takes besides its steps. step, example: what a step takes besides its passes
            and the optimizer, at least and for each example. tensor, weight: of the optimizer with its checks.
            mean_tensor, mean_weight: of the running mean of weights.
        load_call, load_tensor, load_weight: of a state dict into a network. model_call, model_tensor: of transformers'.
        image, image_in, image_out: of decoding and preparing one, and a pixel of the file's and of the network's.
        text, character: of making tokens.
        nowcast: of one prediction of a weight by the hyper-model that jobs take by default.
        figure: of drawing one.
        hash_byte, write_byte, file: of files.
        start: from the start of a process until it can train.
        memory_bytes: of a process that has trained small networks; accelerator_bytes: the same on the GPU, 0 on a CPU.
    """

    name: str
    type: str
    calibrated_at: str
    versions: dict[str, str]
    precision: str
    training: dict[str, float]
    inference: dict[str, float]
    spread: float
    training_call: float
    step: float
    example: float
    tensor: float
    weight: float
    mean_tensor: float
    mean_weight: float
    load_call: float
    load_tensor: float
    load_weight: float
    model_call: float
    model_tensor: float
    image: float
    image_in: float
    image_out: float
    text: float
    character: float
    nowcast: float
    figure: float
    hash_byte: float
    write_byte: float
    file: float
    start: float
    memory_bytes: int
    accelerator_bytes: int

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> "Device | None":
        """From what a worker said of itself; None where it is of a version that says other things."""
        names = {field.name for field in fields(cls)}
        if said.keys() != names or any(said[rates].keys() != set(KINDS) for rates in ("training", "inference")):
            return None
        return cls(**said)

    def seconds(self, work: NDArray[np.float64], *, training: bool) -> float:
        """Args: work: (KINDS,), of :meth:`known_core.costs.Costs.work`."""
        rates = self.training if training else self.inference
        return float(sum(amount * rates[kind] for kind, amount in zip(KINDS, work, strict=True)))


def calibrate(folder: Path, started_s: float) -> Device:
    """Measure this process's device; it should have nothing else to do.

    Args:
        folder: on the disk that jobs are on.
        started_s: how long this process took until it could train.
    """
    device = default_device()
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    known = load_hypermodel(hypermodel_path(None), device)
    _train(_reference("cnn-batch", 4, 8), 8, 8, device)  # the first one imports
    passes = _measure_passes(device, half)
    trained = _fit([(costs.work(size, training=True), both) for costs, size, both, _ in passes])
    forward = _fit([(costs.work(size, training=False), alone) for costs, size, _, alone in passes])
    training, inference = (dict(zip(KINDS, found, strict=True)) for found in (trained[0], forward[0]))
    rates: dict[str, Any] = {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu_name()}, {_cores()} cores",
        "type": device.type,
        "calibrated_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "versions": {"known": known_core.__version__, "torch": torch.__version__},
        "precision": "bfloat16" if half else "float32",
        "training": training,
        "inference": inference,
        "spread": max(trained[1], forward[1]),
        **_measure_optimizer(device),
        **_measure_loading(),
        **_measure_data(),
        **_measure_files(folder),
        "nowcast": _measure_nowcast(known),
        "figure": _typical(lambda: render_svg(_DRAWN, "forgetting")),
        "start": started_s,
        "memory_bytes": _resident(),
        "accelerator_bytes": torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] if half else 0,
    }
    return Device(**(rates | _measure_training(device, rates)))


def _typical(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of one call, the median of three: a job meets the machine as it is, not at its best."""

    def synchronize() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    begun = _clock()
    work()
    synchronize()
    once = _clock() - begun
    repeats = max(1, min(50, round(_SHORTEST_S / max(once, 1e-6))))
    found = []
    for _ in range(_TRIED):
        begun = _clock()
        for _ in range(repeats):
            work()
        synchronize()
        found.append((_clock() - begun) / repeats)
    return statistics.median(found)


def _reference(architecture: str, width: int, side: int) -> nn.Module:
    if architecture == "text":
        return build_text_network(1000, side, 5, width)
    return build_network(architecture, 10, 3, side, width)


def _batch(architecture: str, side: int, size: int) -> dict[str, Tensor]:
    labels = torch.zeros(size, dtype=torch.int64)
    if architecture == "text":
        tokens = torch.ones(size, side, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": tokens, "labels": labels}
    return {"pixel_values": torch.randn(size, 3, side, side), "labels": labels}


def _measure_passes(device: torch.device, half: bool) -> list[tuple[Costs, int, float, float]]:
    """What each reference network asks for, a batch size, and the seconds of both passes and of one forward alone."""
    found = []
    for architecture, width, side, sizes in _REFERENCES:
        network = _reference(architecture, width, side)
        costs = count(network, _batch(architecture, side, 2))
        network.to(device)
        for size in sizes:
            batch = {name: value.to(device) for name, value in _batch(architecture, side, size).items()}

            def both(network: nn.Module = network, batch: dict[str, Tensor] = batch) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    loss = network(**batch)["loss"]
                loss.backward()
                for parameter in network.parameters():
                    parameter.grad = None

            @torch.no_grad()
            def alone(network: nn.Module = network, batch: dict[str, Tensor] = batch) -> None:
                network(**{name: value for name, value in batch.items() if name != "labels"})

            network.train()
            training = _typical(both, device)
            network.eval()
            found.append((costs, size, training, _typical(alone, device)))
    return found


def _fit(rows: list[tuple[NDArray[np.float64], float]]) -> tuple[list[float], float]:
    """Seconds of one of each kind, none below zero, by least squares of relative errors; and what is left of these."""
    work, seconds = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scale = np.maximum(work.max(0), 1.0)
    found, _ = nnls(work / scale / seconds[:, None], np.ones(len(rows)))
    rates = found / scale
    return rates.tolist(), float(np.log(np.maximum(work @ rates, 1e-9) / seconds).std())


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Through the first and the last point: at 0, and for one more; neither below zero."""
    (low, at_low), (high, at_high) = points[0], points[-1]
    each = max(0.0, (at_high - at_low) / (high - low))
    return max(0.0, at_low - low * each), each


def _measure_optimizer(device: torch.device) -> dict[str, float]:
    def parameters(tensors: int, size: int) -> nn.Module:
        network = nn.Module()
        for index in range(tensors):
            network.register_parameter(str(index), nn.Parameter(torch.zeros(size, device=device)))
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        return network

    def step_of(network: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-9, weight_decay=0.0)

        def step() -> None:  # as transformers' Trainer and our watch of it do
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            torch.isfinite(nn.utils.get_total_norm(gradients)).item()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

        return step

    many, large = parameters(60, 64), parameters(4, 1 << 20)
    averages = [RunningMean(network) for network in (many, large)]
    tensor = _typical(step_of(many), device) / 60
    weight = max(0.0, _typical(step_of(large), device) - 4 * tensor) / (4 << 20)
    mean_tensor = _typical(lambda: averages[0].update(), device) / 60
    mean_weight = max(0.0, _typical(lambda: averages[1].update(), device) - 4 * mean_tensor) / (4 << 20)
    return {"tensor": tensor, "weight": weight, "mean_tensor": mean_tensor, "mean_weight": mean_weight}


class _Ready(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int) -> None:
        self._rows = _batch("cnn-batch", 8, count)

    def __len__(self) -> int:
        return len(self._rows["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[index] for name, rows in self._rows.items()}


def _train(network: nn.Module, examples: int, size: int, device: torch.device) -> None:
    fine_tune(network, _Ready(examples), epochs=1, learning_rate=1e-9, batch_size=size, seed=0, device=device)


def _measure_training(device: torch.device, rates: dict[str, Any]) -> dict[str, float]:
    """What a training takes besides the passes and the optimizer: for itself, a step, an example of one."""
    network = _reference("cnn-batch", 4, 8)
    costs = count(network, _batch("cnn-batch", 8, 2))

    def seconds(examples: int, size: int) -> float:
        begun = _clock()
        _train(network, examples, size, device)
        took = _clock() - begun
        work = costs.work(size, training=True)
        passes = float(sum(amount * rates["training"][kind] for kind, amount in zip(KINDS, work, strict=True)))
        return took - examples // size * (passes + costs.trained_tensors * float(rates["tensor"]))

    none, few, full = (
        statistics.median(seconds(examples, size) for _ in range(_TRIED))
        for examples, size in ((8, 8), (31 * 8, 8), (31 * 64, 64))
    )
    step, example = _line([(8, max(0.0, few - none) / 30), (64, max(0.0, full - none) / 30)])
    return {"training_call": max(0.0, none - step - 8 * example), "step": step, "example": example}


def _measure_loading() -> dict[str, float]:
    def state_dict(architecture: str, width: int) -> tuple[float, int, int]:
        state = _reference(architecture, width, 28).state_dict()

        def load() -> None:
            _reference(architecture, width, 28).load_state_dict({k: v.clone() for k, v in state.items()})

        return _typical(load), len(state), sum(value.numel() for value in state.values())

    small, many, large = state_dict("cnn-plain", 4), state_dict("shufflenetv2", 16), state_dict("cnn-plain", 128)
    call, tensor = _line([(small[1], small[0]), (many[1], many[0])])
    weight = max(0.0, large[0] - small[0]) / (large[2] - small[2])
    import transformers

    def model(layers: int) -> tuple[float, float]:
        config = transformers.BertConfig(
            vocab_size=100, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16
        )
        kind = transformers.BertForSequenceClassification
        state = kind(config).state_dict()

        def load() -> None:
            tensors = {name: value.clone() for name, value in state.items()}
            kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)

        return len(state), _typical(load)

    model_call, model_tensor = _line([model(1), model(6)])
    return {
        "load_call": call, "load_tensor": tensor, "load_weight": weight,
        "model_call": model_call, "model_tensor": model_tensor,
    }  # fmt: skip


def _measure_data() -> dict[str, float]:
    """Images of noise, half PNG and half JPEG, to a network's square; words to tokens."""
    generator = np.random.default_rng(0)

    def encoded(side: int) -> list[bytes]:
        smooth = Image.fromarray(generator.integers(0, 256, (side // 8 or 1, side // 8 or 1, 3), dtype=np.uint8))
        files = []
        for kind in ("PNG", "JPEG"):
            buffer = io.BytesIO()
            smooth.resize((side, side), Image.Resampling.BICUBIC).save(buffer, kind)
            files.append(buffer.getvalue())
        return files

    def prepared(files: list[bytes], side: int) -> None:
        for file in files:
            image = Image.open(io.BytesIO(file)).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)
            (pixels.float() / 255 - 0.5).div(0.5).clone()

    tiny, large = encoded(16), encoded(512)
    image = _typical(lambda: prepared(tiny, 16)) / 2
    image_in = max(0.0, _typical(lambda: prepared(large, 16)) / 2 - image) / (512 * 512)
    image_out = max(0.0, _typical(lambda: prepared(tiny, 224)) / 2 - image) / (224 * 224)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    text, character = _measure_tokens(words, generator)
    return {"image": image, "image_in": image_in, "image_out": image_out, "text": text, "character": character}


def _measure_tokens(words: list[str], generator: np.random.Generator) -> tuple[float, float]:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"]))
    fast: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",  # noqa: S106
    )

    def seconds(length: int) -> tuple[float, float]:
        texts = [" ".join(generator.choice(words, length)) for _ in range(200)]

        def encode() -> None:
            encoded = fast(texts)
            for name in ("input_ids", "attention_mask"):
                for row in encoded[name]:
                    torch.tensor(row, dtype=torch.int64)

        return sum(map(len, texts)) / len(texts), _typical(encode) / len(texts)

    return _line([seconds(4), seconds(100)])


def _measure_files(folder: Path) -> dict[str, float]:
    data = np.random.default_rng(0).bytes(16 << 20)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".calibration-") as place:

        def write(name: str, content: bytes) -> None:
            with (Path(place) / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())

        def small() -> None:
            for index in range(50):
                (Path(place) / str(index)).write_bytes(b"x")
            fsync_directory(Path(place))

        large = _typical(lambda: write("large", data))
        return {
            "file": _typical(small) / 50,
            "write_byte": large / len(data),
            "hash_byte": _typical(lambda: hashlib.sha256(data).digest()) / len(data),
        }


def _measure_nowcast(known: Any) -> float:
    states = [torch.randn(512, 512) * 0.01 for _ in range(known.states)]
    return _typical(lambda: predict_tensor(known, "fc", states, 0.5, 2), None) / states[0].numel() / 2


def _resident() -> int:
    """Bytes of this process in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def age_of_process() -> float:
    """Seconds since this process began (proc_pid_stat(5), field 22)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except OSError:
        return time.process_time()
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


def main(folder: Path, *, busy: bool = False) -> Device:
    """Calibrate in this process, which does nothing else. Call it first thing.

    Args:
        folder: on the disk that jobs are on.
        busy: others use the machine too: one thread, and its processor time instead of the clock's.
    """
    global _clock
    from known_core.processes import die_with_parent, keep_memory

    die_with_parent()
    keep_memory()
    import known_core.pipeline
    import known_core.report.html  # noqa: F401 - what a trainer imports

    gc.collect()
    gc.freeze()  # as a trainer does
    load_hypermodel(hypermodel_path(None), default_device())
    if busy:
        torch.set_num_threads(1)
        _clock = time.process_time
    return calibrate(folder, time.process_time() if busy else age_of_process())


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), busy="--busy" in sys.argv))))
