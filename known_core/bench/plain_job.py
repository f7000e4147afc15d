"""The overhead benchmark's other side: a job's trainings and its nowcast as a plain script, in one folder.

    python -m known_core.bench.plain_job FOLDER

FOLDER holds model.safetensors, config.json, data.zip and downstream.zip of a registered classifier without batch norm,
and settings.json. Every network is trained by transformers' own Trainer with the settings of a job; nothing is checked,
hashed, kept for a restart or told to anybody.
"""

import io
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from known_core.checkpoint import Checkpoint
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.models.registered import build_registered
from known_core.nowcast import nowcast


class _Images(Dataset[dict[str, Tensor]]):
    """The images of a split of a zip of class folders, of the size that the network takes."""

    def __init__(self, path: Path, split: str, size: int) -> None:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/") and name[-1] != "/")
            classes = sorted({name.split("/")[1] for name in names})
            self.labels = np.array([classes.index(name.split("/")[1]) for name in names])
            images = [Image.open(io.BytesIO(archive.read(name))) for name in names]
            pixels = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
        self._pixels = torch.from_numpy(np.stack(pixels)[:, None].astype(np.float32) / 255)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self._pixels[index], "labels": torch.tensor(int(self.labels[index]))}


class _Average(TrainerCallback):
    """The mean of the weights over the second half of the steps."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._mean = AveragedModel(kw["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if state.global_step > state.max_steps / 2:
            self._mean.update_parameters(kw["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        kw["model"].load_state_dict(self._mean.module.state_dict())


def _train(
    model: nn.Module, items: Dataset[Any], folder: Path, epochs: int, rate: float, batch: int, seed: int, mean: bool
) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), num_train_epochs=epochs, learning_rate=rate, lr_scheduler_type="constant",
        per_device_train_batch_size=batch, optim="adamw_torch", weight_decay=0.0, seed=seed, report_to="none",
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(), disable_tqdm=True,
        remove_unused_columns=False, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=items, callbacks=[_Average()] if mean else [])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


@torch.inference_mode()
def _accuracy(model: nn.Module, images: Dataset[Any]) -> float:
    model.eval()
    right = 0
    for batch in torch.utils.data.DataLoader(images, batch_size=256):
        right += int((model(batch["pixel_values"])["logits"].argmax(1) == batch["labels"]).sum())
    return right / len(images)  # type: ignore[arg-type]


def main(folder: Path) -> None:
    """Run it; prints the seconds since its imports were done."""
    begun = time.perf_counter()
    settings = json.loads((folder / "settings.json").read_text())
    forgetting, evaluation = settings["forgetting"], settings["evaluation"]
    config = json.loads((folder / "config.json").read_text())
    size = config["img_size"]
    train, test = (_Images(folder / "data.zip", split, size) for split in ("train", "test"))
    pool, pool_test = (_Images(folder / "downstream.zip", split, size) for split in ("train", "test"))
    given = folder / "state-0"
    given.mkdir()
    save_file(load_file(folder / "model.safetensors"), given / "model.safetensors", metadata={"format": "pt"})

    def probe(weights: Path, seed: int, rate: float, validate: bool) -> float:
        order: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(pool))
        torch.manual_seed(seed)
        model = build_registered({**config, "num_classes": settings["downstream_classes"]})
        kept = {name: value for name, value in load_file(weights / "model.safetensors").items() if "head" not in name}
        model.load_state_dict(kept, strict=False)
        count = evaluation["probe_examples"]
        some = Subset(pool, order[:count].tolist())
        _train(model, some, folder, evaluation["probe_epochs"], rate, 32, seed, mean=False)
        return _accuracy(model, Subset(pool, order[count:].tolist()) if validate else pool_test)

    def evaluate(weights: Path) -> None:
        model = build_registered(config)
        model.load_state_dict(load_file(weights / "model.safetensors"))
        _accuracy(model, test)
        grid = evaluation["probe_learning_rates"]
        best = max(grid, key=lambda rate: probe(weights, 1_000_000, rate, validate=True))
        print(
            weights.name, [round(probe(weights, seed, best, validate=False), 4) for seed in range(evaluation["seeds"])]
        )

    evaluate(given)
    states, order = [given], np.random.default_rng(0).permutation(len(train))
    for stage in range(4):
        model = build_registered(config)
        model.load_state_dict(load_file(given / "model.safetensors"))
        subset = Subset(train, order[: round(len(train) * forgetting["rate"] ** stage)].tolist())
        _train(
            model, subset, folder, forgetting["epochs_per_stage"], forgetting["learning_rate"],
            forgetting["batch_size"], stage, mean=True,
        )  # fmt: skip
        states.append(folder / f"state-{stage + 1}")
        states[-1].mkdir()
        save_file(model.state_dict(), states[-1] / "model.safetensors", metadata={"format": "pt"})
        _accuracy(model, test)
    outputs = [folder / name for name in ("x2", "x4", "x8")]
    known = load_hypermodel(hypermodel_path(None))
    nowcast([Checkpoint(state) for state in states], known, outputs, forgetting["rate"])
    for output in outputs:
        evaluate(output)
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
