"""`known bench nowcast`: how fast predictions are made, from files to files, against what this machine can do at most.

Every row is a run of :func:`known_core.nowcast.nowcast` in a process of its own, on checkpoints of real architectures
with generated weights (the time depends on their number, not on their values). The ceilings, a float32 matrix product
and a copy, are measured in the same run.
"""

import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torchvision.models import resnet18

from known_core.checkpoint import Checkpoint, TensorWriter
from known_core.checkpoint.dtypes import TORCH_DTYPES
from known_core.checkpoint.header import Header, TensorInfo
from known_core.errors import KnownError
from known_core.hypermodel import STATES, HyperModel, Known, KnownNetwork, Stream
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.kernels.choice import choose_engine
from known_core.kinds import Kind
from known_core.nowcast import nowcast
from known_core.processes import die_with_parent, keep_memory
from known_core.shards import TILE

MODELS = ("resnet18", "gpt2", "gpt2-xl")
_FLOPS = {"known-paper": 14_608, "known-v1": 2 * (16 * 5 + 5 * 16 + 5)}  # a weight and step, multiply and add as two
_ENOUGH_S = 4.0  # a measurement is repeated until it took this long together
_REPEATS = 5  # at most

Progress = Callable[[str], None]


def run_nowcast(
    *,
    models: Sequence[str],
    engines: Sequence[str] | None,
    device: str,
    hypermodel: str,
    recurrences: int,
    reference: Path | None,
    work: Path | None,
    on_progress: Progress = lambda what: None,
) -> list[dict[str, Any]]:
    """Measure every engine on every model.

    Args:
        models: of :data:`MODELS`.
        engines: None takes all that run on the device.
        device: "cpu" or "cuda".
        hypermodel: the name of one that ships.
        recurrences: predictions of each weight in one run.
        reference: folder with the authors' KNOWN_*.h5, to measure their Keras predict beside ours (needs tensorflow).
        work: folder for the states, which stay there; None takes a temporary one.
        on_progress: says what is being done.

    Returns:
        A row for each model and engine: ``model``, ``engine``, ``hypermodel``, ``device``, ``parameters`` (predicted),
        ``recurrences``, ``seconds`` of a run, ``seconds_per_parameter`` (of one prediction), ``ratio_to_eager`` (how
        many times as fast), ``flops_per_second`` and ``bytes_per_second`` with the ceilings
        ``matmul_flops_per_second`` and ``copy_bytes_per_second``, ``fraction_of_matmul_ceiling``, ``peak_rss_bytes``
        (above what the process had before the run), and ``engine_seconds_per_parameter``, of the engine alone on a
        tile in its device's memory (the last two are None for Keras).

    Raises:
        KnownError: ``option_invalid``, ``engine_unavailable``, ``hypermodel_unknown``, ``disk_full``,
            ``extra_missing``, ``file_missing``.
    """
    for model in models:
        if model not in MODELS:
            raise KnownError("option_invalid", f"there is no model {model!r}", f"Choose from {MODELS}.")
    if hypermodel not in _FLOPS:
        raise KnownError("hypermodel_unknown", f"there is no {hypermodel!r} to measure", f"Choose from {list(_FLOPS)}.")
    if device != "cpu" and not torch.cuda.is_available():
        raise KnownError("option_invalid", f"device is {device!r} and there is no CUDA device", "Use --device cpu.")
    names = list(engines or (["eager", "triton"] if device == "cuda" else ["eager", "cpu"]))
    for name in names:
        choose_engine(device, name)
    if reference is not None:
        _check_keras(reference)
    on_progress("ceilings: matrix product and copy")
    ceilings = {
        "matmul_flops_per_second": matmul_ceiling(device),
        "copy_bytes_per_second": copy_ceiling(device),
    }
    rows = []
    with _folder(work) as folder:
        for model in models:
            on_progress(f"{model}: generating states")
            states = generate(model, folder)
            found: dict[str, dict[str, Any]] = {}
            for engine in names:
                on_progress(f"{model}: {engine}")
                found[engine] = _measured(states, folder / f"{model}-out", engine, device, hypermodel, recurrences)
            if reference is not None and model == MODELS[0]:
                on_progress(f"{model}: the authors' Keras predict")
                found["keras"] = _measured_keras(reference, found[names[0]]["parameters"])
            eager = found.get("eager", {}).get("seconds_per_parameter")
            for engine, row in found.items():
                seconds = row["seconds_per_parameter"]
                flops = _FLOPS[hypermodel] / seconds
                rows.append({
                    "model": model,
                    "engine": engine,
                    "hypermodel": hypermodel,
                    "device": device if device == "cpu" else torch.cuda.get_device_name(),
                    **row,
                    "ratio_to_eager": eager / seconds if eager else None,
                    "flops_per_second": flops,
                    "fraction_of_matmul_ceiling": flops / ceilings["matmul_flops_per_second"],
                    **ceilings,
                })  # fmt: skip
    return rows


def matmul_ceiling(device: str) -> float:
    """FLOP/s of the fastest square float32 matrix product."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
        best = max(best, 2 * size**3 / _best_time(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


def copy_ceiling(device: str) -> float:
    """Bytes/s of a copy that fits no cache; read and written bytes both count."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_time(lambda: target.copy_(source), device)


def _best_time(call: Callable[[], object], device: str) -> float:
    times: list[float] = []
    call()
    while len(times) < 3 or (sum(times) < 1 and len(times) < 100):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def generate(model: str, folder: Path) -> list[Path]:
    """Five checkpoints of the model's tensors with random weights, Θ_0 first; those that are there stay.

    ResNet-18 in float32 (11.7 M parameters), GPT-2 in float32 (124 M), GPT-2 XL in bfloat16 (1.56 B).
    """
    with torch.device("meta"):
        if model == "resnet18":
            network = resnet18()
        else:
            size = {"gpt2": (768, 12, 12), "gpt2-xl": (1600, 48, 25)}[model]
            config = transformers.GPT2Config(n_embd=size[0], n_layer=size[1], n_head=size[2])
            network = transformers.GPT2LMHeadModel(config).transformer
    dtype = "BF16" if model == "gpt2-xl" else "F32"
    tensors, begin = {}, 0
    for name, tensor in network.state_dict().items():
        of_tensor = dtype if tensor.is_floating_point() else "I64"
        end = begin + tensor.numel() * TORCH_DTYPES[of_tensor].itemsize
        tensors[name] = TensorInfo(of_tensor, tuple(tensor.shape), begin, end)
        begin = end
    paths = [folder / model / f"{index}.safetensors" for index in range(STATES)]
    missing = [path for path in paths if not path.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = len(missing) * begin, shutil.disk_usage(folder).free
    if needed > free:
        raise KnownError(
            "disk_full", f"the states of {model} take {needed:,} bytes, {free:,} are free at {folder}",
            "Name another folder with --work, or fewer models with --model.",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    theta, step = (scale * torch.randn((1 << 22) + STATES, generator=generator) for scale in (0.05, 0.002))
    for index, path in enumerate(paths):
        if path in missing:
            with TensorWriter(path, Header(tensors, {}, b"")) as writer:
                for name, info in tensors.items():
                    for first in range(0, info.numel, 1 << 22):
                        count = min(1 << 22, info.numel - first)
                        writer.write_part(name, first, theta[:count] + step[index : index + count])
    return paths


def _measured(
    states: Sequence[Path], out: Path, engine: str, device: str, hypermodel: str, recurrences: int
) -> dict[str, Any]:
    """Repeated runs in a fresh process: the best time, the highest memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_measure, args=(sender, states, out, engine, device, hypermodel, recurrences), daemon=True
    )
    process.start()
    sender.close()
    try:
        result: dict[str, Any] | KnownError = receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that measured {engine} ended with status {process.exitcode}") from None
    finally:
        process.join()
    if isinstance(result, KnownError):
        raise result
    return result


def _measure(
    sender: Connection, states: Sequence[Path], out: Path, engine: str, device: str, hypermodel: str, recurrences: int
) -> None:
    die_with_parent()
    keep_memory()
    try:
        known = load_hypermodel(hypermodel_path(hypermodel), device)
        known.engine = choose_engine(device, engine)
        checkpoints = [Checkpoint(path) for path in states]
        before = _memory("VmRSS")
        times: list[float] = []
        while not times or (sum(times) < _ENOUGH_S and len(times) < _REPEATS):
            shutil.rmtree(out, ignore_errors=True)
            begun = time.perf_counter()
            counts = nowcast(checkpoints, known, [out / str(step) for step in range(recurrences)], 0.5)
            times.append(time.perf_counter() - begun)
        engine_s = _engine_seconds(known, known.engine.device)
        predicted = sum(count for kind, count in counts.items() if kind != "carried")
        of_state = sum(info.end - info.begin for info in checkpoints[0].tensors.values())
        sender.send({
            "parameters": predicted,
            "recurrences": recurrences,
            "seconds": min(times),
            "seconds_per_parameter": min(times) / predicted / recurrences,
            "engine_seconds_per_parameter": engine_s,
            "bytes_per_second": (STATES + recurrences) * of_state / min(times),
            "peak_rss_bytes": _memory("VmHWM") - before,
        })  # fmt: skip
    except KnownError as error:
        sender.send(error)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _engine_seconds(known: HyperModel, engine_device: torch.device) -> float:
    """Seconds a weight of one prediction, on a tile that lies in the engine's device."""
    theta = 0.05 * torch.randn(TILE, device=engine_device)
    states = theta + 0.002 * torch.randn(STATES, TILE, device=engine_device)
    whole = known.survey("fc", [states], 0.5, 1)
    return _best_time(lambda: known.predict("fc", states, whole, 0.5, 1), engine_device.type) / TILE


def _memory(field: str) -> int:
    """Bytes, as Linux counts them for this process: resident now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _check_keras(reference: Path) -> None:
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise KnownError("extra_missing", "tensorflow is not installed", "pip install tensorflow-cpu") from error
    if not (reference / "KNOWN_Conv.h5").is_file():
        raise KnownError("file_missing", f"there is no KNOWN_Conv.h5 in {reference}", "Give the authors' three files.")


def _measured_keras(reference: Path, parameters: int) -> dict[str, Any]:
    """The authors' network for kernels, run by Keras' predict on as many windows as the model has weights."""
    network = _keras_network(reference)
    rows = torch.randn(parameters, STATES, generator=torch.Generator().manual_seed(0)).numpy()
    inputs = [rows, np.diff(rows)]
    best = math.inf
    for batch in (4_096, 65_536):
        network.predict([part[:batch] for part in inputs], batch_size=batch, verbose=0)
        begun = time.perf_counter()
        network.predict(inputs, batch_size=batch, verbose=0)
        best = min(best, time.perf_counter() - begun)
    return {
        "parameters": parameters,
        "recurrences": 1,
        "seconds": best,
        "seconds_per_parameter": best / parameters,
        "engine_seconds_per_parameter": None,
        "bytes_per_second": 4 * (STATES + 1) * parameters / best,
        "peak_rss_bytes": None,
    }


def _keras_network(reference: Path) -> Any:
    """KNOWN as the paper describes it, in Keras, with the authors' weights (their files hold no architecture)."""
    from tensorflow import keras

    kinds: tuple[Kind, ...] = ("conv", "fc", "bias")
    names = {"conv": "KNOWN_Conv.h5", "fc": "KNOWN_FC.h5", "bias": "KNOWN_Bias.h5"}
    known = Known.from_keras({kind: reference / names[kind] for kind in kinds})
    network = known.networks["conv"]
    assert isinstance(network, KnownNetwork)

    def dense(layer: nn.Linear, values: Any) -> Any:
        ours = keras.layers.Dense(layer.out_features)
        result = ours(values)
        ours.set_weights([layer.weight.detach().numpy().T, layer.bias.detach().numpy()])
        return result

    def stream(ours: Stream, values: Any) -> Any:
        h = dense(ours.expand, values)
        z = keras.layers.ReLU()(dense(ours.squeeze, h))
        gate = keras.layers.Activation("exponential")(keras.layers.Multiply()([dense(ours.exponent, z), h]))
        h = keras.layers.Add()([dense(ours.additive, z), keras.layers.Multiply()([dense(ours.multiplier, z), gate])])
        return keras.layers.LeakyReLU(negative_slope=0.3)(dense(ours.features, h))

    inputs = [keras.Input((STATES,)), keras.Input((STATES - 1,))]
    features = [stream(network.values, inputs[0]), stream(network.differences, inputs[1])]
    head = keras.layers.Activation("tanh")(dense(network.head, keras.layers.Concatenate()(features)))
    return keras.Model(inputs, head)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
    else:
        with tempfile.TemporaryDirectory(prefix="known-bench-") as folder:
            yield Path(folder)
