"""One stage of fine-tuning, on transformers' Trainer."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import transformers
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_swa_avg_fn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from known_core.errors import KnownError
from known_core.team import Rank

OnStep = Callable[[int, int, float], None]  # steps done, steps in all, the last one's loss
LrSchedule = str

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class _FiniteTrainer(Trainer):
    """A Trainer that stops at the first loss that is not a number.

    What a part of a batch weighs is said with it (:class:`_Shares`). Trainer's own way, by the number of labels, needs
    the loss to be a network's sum over them, and takes every forward with ``**kwargs`` for one that knows it:
    Segformer's does not.
    """

    loss_sum: float = 0.0

    def __init__(self, *args: Any, shares: "_Shares", spread: bool, **kwargs: Any) -> None:
        self._spread = spread
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._shares = shares
        if spread:  # the network places itself and reduces its gradients: accelerate is to leave it as it is
            self.is_distributed_loading_by_transformers = True
            self.place_model_on_device = False

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self._spread:
            super()._move_model_to_device(model, device)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Not at all: gradients that wait for the last part of a batch are whole in every process."""
        return nullcontext()

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._shares, batch_size=None, pin_memory=self.args.dataloader_pin_memory)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        weight = inputs.pop(_SHARE)
        return super().compute_loss(model, inputs, *args, **kwargs) * weight

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        value = float(loss)
        if value != value or value in (float("inf"), float("-inf")):
            raise _diverged("loss", self.state.global_step, self.args.learning_rate)
        self.loss_sum += value  # of micro batches it is their share of the step's
        return loss

    def loss_of_all(self, loss: float) -> float:
        """The mean over the processes that train together."""
        if self._shares.rank.count == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64, device=self.args.device)
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()


_SHARE = "share_of_the_batch"


class _Shares(IterableDataset[dict[str, Any]]):
    """What one process trains on: its part of every batch, in an order that does not depend on how many there are.

    A batch is cut into parts that fit into memory, and these by processes. The mean loss of a part counts by its
    examples, so that what all parts of a batch add up to is the mean over the batch, also over the few examples of an
    epoch's last one. A process that has none computes on one, for nothing.

    Args:
        dataset: items, the same in all processes.
        batch_size: examples of a step, of all processes together.
        micro: examples that one process holds at once, at most.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        batch_size: int,
        micro: int,
        seed: int,
        rank: Rank,
    ) -> None:
        self._dataset, self._collate, self._batch_size, self.rank = dataset, collate, batch_size, rank
        self._together = min(batch_size, micro * rank.count)
        self._order = SeedableRandomSampler(dataset, data_seed=seed)

    @property
    def parts(self) -> int:
        """Into how many a batch is cut, one after the other."""
        return self._parts(self._batch_size)

    def _parts(self, examples: int) -> int:
        return -(-examples // self._together)

    def __len__(self) -> int:
        full, rest = divmod(len(self._dataset), self._batch_size)
        return full * self.parts + self._parts(rest)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = list(self._order)
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            parts = self._parts(len(batch))
            for part in np.array_split(batch, parts):
                own = np.array_split(part, self.rank.count)[self.rank.index].tolist()
                items = self._items(own or batch[:1])
                # Trainer divides by the parts, and the mean over the processes by their number
                yield {**self._collate(items), _SHARE: len(own) * self.rank.count * parts / len(batch)}

    def _items(self, indices: list[int]) -> list[Any]:
        """All at once where the data set can, as PyTorch's own loader asks for them."""
        together = getattr(self._dataset, "__getitems__", None)
        return together(indices) if together else [self._dataset[index] for index in indices]


class _Watch(TrainerCallback):
    """Reports each step with its loss, and stops at the first gradient that is not finite."""

    def __init__(self, trainer: _FiniteTrainer, on_step: OnStep) -> None:
        self._trainer, self._on_step = trainer, on_step
        self._before = 0.0  # the sum of losses up to the last step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not torch.isfinite(_whole(nn.utils.get_total_norm(gradients))):
            raise _diverged("gradient", state.global_step, args.learning_rate)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss, self._before = self._trainer.loss_sum - self._before, self._trainer.loss_sum
        self._on_step(state.global_step, state.max_steps, self._trainer.loss_of_all(loss))


class RunningMean:
    """The mean of a network's trained weights over several moments; of one that is spread, of this process's part.

    Args:
        model: its weights now count as the first moment.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = [_local(weight) for weight in model.parameters() if weight.requires_grad]
        self._means = [weight.clone() for weight in self._weights]
        self._moments = 1
        self._average = get_swa_avg_fn()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Count the weights as they are now."""
        for mean, weight in zip(self._means, self._weights, strict=True):
            mean.copy_(self._average(mean, weight, self._moments))
        self._moments += 1

    def apply(self) -> None:
        """Give the network the mean for its weights."""
        for mean, weight in zip(self._means, self._weights, strict=True):
            weight.copy_(mean)


def _local(tensor: Tensor) -> Tensor:
    """What this process has of it, without gradient; the same memory."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class _Average(TrainerCallback):
    """The running mean of the weights over the last steps (Izmailov et al. 2018, stochastic weight averaging)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._mean: RunningMean | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > (1 - self._share) * state.max_steps:
            if self._mean is None:
                self._mean = RunningMean(kwargs["model"])
            else:
                self._mean.update()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        assert self._mean is not None
        self._mean.apply()


class _OwnNoise(TrainerCallback):
    """Dropout of its own in each process; the first one's is that of a single process."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if not self._rank.leads:
            torch.manual_seed(args.seed + 1_000_003 * self._rank.index)


Precision = Literal["float32", "bfloat16", "float16"]


def _collate(items: list[Any]) -> dict[str, Any]:
    """A lone example is shown twice: batch norm cannot train on one value a channel, and the mean loss is the same."""
    batch: dict[str, Any] = default_data_collator(items * 2 if len(items) == 1 else items)
    return batch


def _diverged(what: str, step: int, learning_rate: float) -> KnownError:
    return KnownError(
        "training_diverged",
        f"the {what} is not finite at step {step} with learning rate {learning_rate:g}",
        "Lower the learning rate; if it is already small, look for broken examples in the data set.",
    )


def enable_checkpointing(model: nn.Module) -> bool:
    """Recompute activations instead of keeping them, where the network's library can; returns whether it does."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "set_grad_checkpointing")
    for owner in (model, getattr(model, "network", None)):  # names of transformers 5, its first releases, and timm
        enable = next((getattr(owner, name) for name in names if hasattr(owner, name)), None)
        if enable is not None:
            with suppress(ValueError, AssertionError):  # how transformers and timm say that this network cannot
                enable()
                return True
    return False


def thinned(losses: Sequence[float], most: int = 200) -> list[tuple[int, float]]:
    """The loss of each step, as at most so many pairs of a step and the mean loss since the pair before."""
    ends = np.unique(np.linspace(0, len(losses), min(most, len(losses)) + 1).round().astype(int))
    return [(int(end), float(np.mean(losses[begin:end]))) for begin, end in pairwise(ends)]


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fine_tune(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    device: torch.device,
    schedule: LrSchedule = "constant",
    optimizer: str = "adamw_torch",
    average_last: float = 0.0,
    collate: Callable[[list[Any]], dict[str, Any]] = _collate,
    precision: Precision | None = None,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
    on_step: OnStep = lambda step, total, loss: None,
    rank: Rank | None = None,
) -> float:
    """Fine-tune ``model`` in place, without weight decay, gradient norm clipped at 1.

    Args:
        model: its forward takes the names in a batch, ``labels`` among them, and returns a mapping with ``loss``.
        dataset: items are mappings of forward's arguments.
        schedule: a transformers scheduler name, "constant" or "cosine" here.
        optimizer: a transformers optimiser name.
        average_last: the model ends with the mean of its weights over this share of the steps, 0 for those of the last
            step alone. Batch-norm statistics are then those of no single network: re-estimate them.
        collate: makes a batch of items.
        precision: of the arithmetic; None is bfloat16 on a GPU that has it, else float32.
        micro_batch_size: examples in memory at once, at most: a batch is cut into as few parts as that needs, and
            their gradients are added up to those of the batch's mean.
        gradient_checkpointing: recompute activations instead of keeping them.
        on_step: called after each optimiser step, with the mean loss of its batch.
        rank: where this process trains with others, all of which call this: it takes its part of every batch. Each
            has the whole network (DDP), or a part that :func:`known_core.sharding.load_sharded` gave it (FSDP2).
            ``micro_batch_size`` is then of each process.

    Returns:
        The mean training loss.

    Raises:
        KnownError: ``training_diverged`` on a loss or gradient that is not finite.
    """
    on_cuda = device.type == "cuda"
    precision = precision or ("bfloat16" if on_cuda and torch.cuda.is_bf16_supported() else "float32")
    micro = micro_batch_size or batch_size
    shares = _Shares(dataset, collate, batch_size, micro, seed, rank or Rank(0, 1, False, device))
    if gradient_checkpointing:
        enable_checkpointing(model)
    with tempfile.TemporaryDirectory() as unused:
        arguments = TrainingArguments(
            output_dir=unused,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type=schedule,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=shares.parts,
            weight_decay=0.0,
            optim=optimizer,
            seed=seed,
            use_cpu=not on_cuda,
            bf16=precision == "bfloat16",
            fp16=precision == "float16",
            dataloader_pin_memory=on_cuda,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        if rank is None:
            arguments.device  # noqa: B018 - finds the GPUs that there are
            arguments._n_gpu = min(1, arguments._n_gpu)  # more would each take a whole batch (nn.DataParallel)
        trainer = _FiniteTrainer(
            model=model,
            args=arguments,
            callbacks=[_Average(average_last)] if average_last else [],
            shares=shares,
            spread=rank is not None and rank.sharded,
        )
        if rank is not None:
            trainer.add_callback(_OwnNoise(rank))
        trainer.add_callback(_Watch(trainer, on_step))
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    return trainer.loss_sum / max(1, trainer.state.global_step)
