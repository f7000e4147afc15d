"""What estimates are worth: jobs of every kind, each estimated, then run in a process of its own as a worker does."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from known_core.device import Device
from known_core.errors import KnownError
from known_core.files import write_json
from known_core.sample_data import load_sample, write_imagefolder
from known_core.sample_text import FOLDER as WORDNET
from known_core.spec import JobSpec

Make = Callable[[Path], dict[str, Any]]  # writes a job's inputs into a folder; returns the fields of its spec


def run_estimate(
    jobs: Sequence[str] | None,
    work: Path | None,
    on_progress: Callable[[str], None] = lambda what: None,
    *,
    busy: bool = False,
) -> dict[str, Any]:
    """Estimate and run jobs one after the other.

    The device is calibrated in a process of its own before every fifth of them.

    Args:
        jobs: names; None is all of :data:`JOBS`.
        work: folder for inputs and job folders; a temporary one where None.
        busy: others use the machine too: calibrations and jobs have one thread, and their processor time counts.

    Returns:
        ``device``; ``jobs``, each with ``seconds``, ``memory_bytes`` and ``disk_bytes``, estimated and actual;
        ``median_error`` of the seconds.

    Raises:
        KnownError: ``option_invalid`` for a name that is none.
    """
    wanted = list(JOBS) if jobs is None else list(jobs)
    if unknown := [name for name in wanted if name not in JOBS]:
        raise KnownError("option_invalid", f"there is no job {unknown[0]!r}", f"Jobs: {', '.join(JOBS)}.")
    with tempfile.TemporaryDirectory(dir=work) as place:
        rows, device = [], _calibrated(Path(place), busy)
        for index, name in enumerate(wanted):
            folder = Path(place) / name
            folder.mkdir()
            if index and index % 5 == 0:
                device = _calibrated(Path(place), busy)
            on_progress(name)
            rows.append({"job": name, **_estimate_and_run(name, folder, device, busy)})
    errors = [abs(row["seconds"]["estimated"] / row["seconds"]["actual"] - 1) for row in rows]
    return {"device": device.name, "jobs": rows, "median_error": statistics.median(errors)}


def estimate_summary(found: dict[str, Any]) -> str:
    """The table of docs/estimate.md."""
    lines = ["| job | seconds: estimated | actual | ratio | memory: ratio | disk: ratio |", "|---|---|---|---|---|---|"]
    for row in found["jobs"]:
        ratios = [row[what]["estimated"] / row[what]["actual"] for what in ("seconds", "memory_bytes", "disk_bytes")]
        lines.append(
            f"| {row['job']} | {row['seconds']['estimated']:.0f} | {row['seconds']['actual']:.0f} | "
            + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"
        )  # fmt: skip
    return "\n".join([*lines, "", f"{found['device']}: median error {found['median_error']:.0%}"])


def _calibrated(folder: Path, busy: bool) -> Device:
    said = _python("-m", "known_core.device", str(folder), *(["--busy"] if busy else []), folder=folder)
    return Device(**json.loads(said.stdout.splitlines()[-1]))


def _estimate_and_run(name: str, folder: Path, device: Device, busy: bool) -> dict[str, Any]:
    from known_core.estimate import estimate

    spec = JobSpec(**JOBS[name](folder))
    expected = estimate(spec, device)
    write_json(folder / "spec.json", spec.model_dump(mode="json"))
    ran = _python("-m", "known_core.bench.estimate", str(folder), *(["--busy"] if busy else []), folder=folder)
    actual = json.loads(ran.stdout.splitlines()[-1])
    return {
        "seconds": {"estimated": expected.seconds.expected, "actual": sum(actual["by_phase"].values())},
        "memory_bytes": {"estimated": round(expected.memory.expected), "actual": actual["memory_bytes"]},
        "disk_bytes": {"estimated": round(expected.disk.expected), "actual": actual["disk_bytes"]},
        "by_phase": {
            phase: {"estimated": round(expected.by_phase.get(phase, 0.0), 2), "actual": round(took, 2)}
            for phase, took in actual["by_phase"].items()
        },
    }


def _python(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(f"{arguments} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return ran


def _run(folder: Path, busy: bool) -> dict[str, Any]:
    """In a process of its own: run the job; its peak memory, its disk, and the seconds of its phases."""
    import gc

    import torch

    import known_core.report.html  # noqa: F401 - as a trainer, before its first phase
    from known_core.device import age_of_process
    from known_core.files import folder_bytes, read_json
    from known_core.memory import peak_memory
    from known_core.pipeline import run
    from known_core.processes import keep_memory

    if busy:
        torch.set_num_threads(1)
    clock = time.process_time if busy else time.monotonic
    keep_memory()
    gc.collect()
    gc.freeze()
    phase, by_phase = "starting", {"starting": time.process_time() if busy else age_of_process()}
    begun = clock()

    def enter(following: str) -> None:
        nonlocal phase, begun
        by_phase[phase] = by_phase.get(phase, 0.0) + clock() - begun
        phase, begun = following, clock()

    spec = JobSpec.model_validate(read_json(folder / "spec.json"))
    run(spec, folder / "run", lambda event: enter(event["phase"]) if event["type"] == "phase" else None)
    enter("")
    return {
        "memory_bytes": peak_memory()["memory_bytes"],
        "disk_bytes": folder_bytes(folder / "run"),
        "by_phase": by_phase,
    }


def _images(path: Path, name: str, count: int) -> Path:
    arrays = load_sample(name).of_classes(list(range(5)))
    chosen = arrays.take(np.random.default_rng(0).permutation(len(arrays.labels))[:count])
    cut = count * 3 // 4
    write_imagefolder(path, chosen.take(np.arange(cut)), chosen.take(np.arange(cut, len(chosen.labels))))
    return path


def _glosses(count: int) -> list[tuple[str, str]]:
    """Definitions of WordNet with the part of speech that they define."""
    if not WORDNET.is_dir():
        raise KnownError("sample_missing", f"WordNet is not in {WORDNET}", "apt-get install wordnet-base")
    rows = []
    for part in ("noun", "verb", "adj"):
        lines = (line for line in (WORDNET / f"data.{part}").read_text("utf-8").splitlines() if line[0] != " ")
        rows += [(line.split("|", 1)[1].strip(), part) for line, _ in zip(lines, range(count // 3), strict=False)]
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]


def _texts(path: Path, count: int, *, labels: bool = True) -> Path:
    rows = [{"text": text, **({"label": part} if labels else {})} for text, part in _glosses(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _tokenizer(folder: Path, length: int) -> int:
    """Trained on the definitions, into the folder; returns how many tokens it has."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        [text for text, _ in _glosses(1500)], trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special)
    )
    fast: Any = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=length,  # noqa: S106
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(fast)


def _registered(width: int, size: int, data: str, count: int, norm: str = "batch", **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        from known_core.models.registered import build_registered

        config = {"architecture": "small-cnn", "num_classes": 5, "in_chans": 1, "img_size": size, "width": width,
                  "norm": norm}  # fmt: skip
        save_file(build_registered(config).state_dict(), folder / "model.safetensors")
        data_file = _images(folder / "data.zip", data, count)
        return {"model": folder / "model.safetensors", "config": config, "dataset": data_file, **settings}

    return make


def _timm(architecture: str, size: int, count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import timm

        network = timm.create_model(
            architecture, num_classes=5, pretrained_cfg_overlay={"input_size": (3, size, size), "crop_pct": 1.0}
        )
        timm.models.save_for_hf(network, str(folder / "model"), safe_serialization=True)
        return {"model": folder / "model", "dataset": _images(folder / "data.zip", "digits", count), **settings}

    return make


def _torchvision(architecture: str, size: int, count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import torchvision
        from safetensors.torch import save_file

        save_file(torchvision.models.get_model(architecture, num_classes=5).state_dict(), folder / "model.safetensors")
        config = {"library": "torchvision", "architecture": architecture, "num_classes": 5, "img_size": size}
        return {"model": folder / "model.safetensors", "config": config,
                "dataset": _images(folder / "data.zip", "fashion", count), **settings}  # fmt: skip

    return make


def _vit(count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import transformers

        config = transformers.ViTConfig(
            image_size=28, patch_size=7, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=128,
        )  # fmt: skip
        config.num_labels = 5
        transformers.ViTForImageClassification(config).save_pretrained(folder / "model")
        transformers.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder / "model")
        return {"model": folder / "model", "dataset": _images(folder / "data.zip", "fashion", count), **settings}

    return make


def _bert(kind: str, hidden: int, layers: int, length: int, count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import transformers

        config = transformers.BertConfig(
            vocab_size=_tokenizer(folder / "model", length), hidden_size=hidden, num_hidden_layers=layers,
            num_attention_heads=4, intermediate_size=2 * hidden, max_position_embeddings=length,
        )  # fmt: skip
        if "Sequence" in kind:
            config.id2label = {0: "adj", 1: "noun", 2: "verb"}
        getattr(transformers, kind)(config).save_pretrained(folder / "model")
        data = _texts(folder / "data.jsonl", count, labels="Sequence" in kind or kind == "BertModel")
        return {"model": folder / "model", "dataset": data, **settings}

    return make


def _gpt2(count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import transformers

        vocabulary = _tokenizer(folder / "model", 64)
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=3, eos_token_id=3
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
        return {"model": folder / "model", "dataset": _texts(folder / "data.jsonl", count, labels=False), **settings}

    return make


def _adapter(count: int, **settings: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        import peft
        import transformers

        base = _bert("BertForSequenceClassification", 64, 2, 32, count)(folder)
        (folder / "model").rename(folder / "base")
        network = transformers.BertForSequenceClassification.from_pretrained(folder / "base")
        adapted = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS", r=4))
        adapted.save_pretrained(str(folder / "model"))
        return {**base, "model": folder / "model", "base": folder / "base", **settings}

    return make


def _trajectory(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    for index in range(5):
        save_file({f"layer.{n}.weight": torch.randn(1024, 1024) for n in range(24)}, folder / f"{index}.safetensors")
    return {"trajectory": tuple(folder / f"{index}.safetensors" for index in range(5))}


_QUICK: dict[str, Any] = {  # a third of the trainings of a job that leaves all open
    "evaluation": {"probe_epochs": 5, "probe_learning_rates": (1e-3,)},
    "nowcast": {"controls": ()},
}
JOBS: dict[str, Make] = {
    "small CNN, digits": _registered(16, 8, "digits", 800),
    "small CNN, Fashion-MNIST": _registered(16, 28, "fashion", 1500, **_QUICK),
    "CNN without norm, Fashion-MNIST": _registered(
        32, 28, "fashion", 1000, "none", **_QUICK, forgetting={"epochs_per_stage": 4}
    ),
    "timm ResNet": _timm("test_resnet", 32, 600, **_QUICK),
    "timm EfficientNet": _timm("test_efficientnet", 32, 600, evaluation={"probe_epochs": 3}),
    "timm ViT": _timm("test_vit", 96, 300, **_QUICK),
    "torchvision MobileNetV3": _torchvision("mobilenet_v3_small", 64, 300, **_QUICK),
    "transformers ViT": _vit(800, **_QUICK),
    "BERT, classification": _bert("BertForSequenceClassification", 64, 2, 32, 1200, **_QUICK),
    "wider BERT, longer texts": _bert("BertForSequenceClassification", 192, 4, 64, 500, **_QUICK),
    "BERT, masked": _bert("BertForMaskedLM", 64, 2, 48, 900, evaluation={"probe_epochs": 2}),
    "BERT, features": _bert("BertModel", 64, 2, 32, 900, **_QUICK),
    "GPT-2, causal": _gpt2(1200, **_QUICK),
    "LoRA on BERT": _adapter(900, **_QUICK),
    "trajectory of 25 M": _trajectory,
}


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), busy="--busy" in sys.argv)))
