"""What the processes of tests/known_core/test_team.py do; a module of its own, so that they import little."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from known_core.checkpoint import Checkpoint
from known_core.files import read_json
from known_core.models.registered import SmallCNN
from known_core.models.transformers_models import TransformersNetwork
from known_core.sharding import load_sharded, save_sharded
from known_core.team import Rank
from known_core.training import fine_tune

CPU = torch.device("cpu")


class Blobs(Dataset[dict[str, Tensor]]):
    """Grey images, bright on the left or on the right; as many as fill no batch."""

    def __init__(self, count: int = 43) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 2
        self.pixels = torch.randn(count, 1, 8, 8, generator=generator) * 0.3
        self.pixels[self.labels == 1, :, :, :4] += 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class Texts(Dataset[dict[str, Tensor]]):
    """Rows of 12 tokens that count upwards."""

    def __len__(self) -> int:
        return 19

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(12) + index) % 320
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


def blobs_network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(2, 1, 8, width=4, norm="none")


def train(
    model: nn.Module, dataset: Dataset[Any], rank: Rank | None = None, device: torch.device = CPU, **changes: Any
) -> list[float]:
    """The loss of each step; on ``device`` where a process trains alone."""
    losses: list[float] = []
    settings: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "average_last": 0.5}
    settings |= {"precision": "float32"} | changes
    fine_tune(
        model, dataset, seed=3, device=rank.device if rank else device, rank=rank,
        on_step=lambda step, total, loss: losses.append(loss), **settings,
    )  # fmt: skip
    return losses


def gpt2(folder: Path) -> tuple[TransformersNetwork, Checkpoint]:
    config, classes = read_json(folder / "config.json"), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return TransformersNetwork(config, classes, "a language model", labels=False), Checkpoint(folder)


def both_ways(rank: Rank, folder: Path, out: Path) -> tuple[list[float], list[float], int]:
    """In one process of two: a CNN that each has a copy of, then a language model that is spread over both.

    Returns:
        The losses of both, and how many numbers of the language model this process held.
    """
    model = blobs_network()
    losses = train(model, Blobs(), rank, micro_batch_size=2)
    if rank.leads:
        torch.save(model.state_dict(), out / "ddp.pt")
    network, checkpoint = gpt2(folder)
    spread = replace(rank, sharded=True)
    language = load_sharded(network, checkpoint, spread)
    held = sum(weight.to_local().numel() for weight in language.parameters() if isinstance(weight, DTensor))
    of_texts = train(language, Texts(), spread, micro_batch_size=2)
    save_sharded(language, out / "state", checkpoint, spread)
    return losses, of_texts, held
