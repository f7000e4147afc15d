"""The protocols of the transfer benchmark: pre-training data, network, forgetting, downstream data, seeds."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Tier = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Protocol:
    """One setting of the transfer benchmark.

    ``examples`` is the size of D_0; the oracles train on ``multiples`` times as many of the same source classes, of
    which D_0 is a subset. ``pretraining_seeds`` and ``finetuning_seeds`` report; the seed ``SELECTION`` chooses.
    """

    name: str
    data: str
    source: tuple[int, ...]
    downstream: tuple[int, ...]
    architecture: str
    examples: int
    size: int = 32
    width: int = 16
    epochs: int = 12
    learning_rate: float = 2e-3
    batch_size: int = 64
    augment: bool = True
    rate: float = 0.5
    epochs_per_stage: int = 8
    forgetting_learning_rate: float = 1e-3
    shots: int = 200
    finetuning_epochs: int = 10
    finetuning_learning_rates: tuple[float, ...] = (1e-3, 3e-3, 6e-3)
    probe_examples: int = 1000
    test_examples: int = 1500
    multiples: tuple[int, ...] = (2, 4)
    pretraining_seeds: tuple[int, ...] = (0, 1, 2)
    finetuning_seeds: tuple[int, ...] = (0, 1)
    choosing_draws: int = 1  # draws of the shots that choose a learning rate and a scale, on the selection seed
    selection_draws: int = 3  # draws that choose among methods
    tier: Tier = field(default="cpu", compare=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


NAIVE = "naive"  # the method that does nothing: Θ_0 itself
SELECTION = 1000  # pre-training seed, and first of the fine-tuning draws, that choose and never report

_CIFAR = Protocol("cifar10-resnet", "cifar10", (0, 2, 4, 6, 8), (1, 3, 5, 7, 9), "resnet", 2500, epochs=16)
_SMALL_CIFAR = replace(_CIFAR, examples=1250, size=24)  # what two cores have time for
_FASHION = Protocol(
    "fashion-batch", "fashion", (0, 1, 2, 3, 4, 5), (6, 7, 8, 9), "cnn-batch", 1500, size=28, augment=False,
    learning_rate=1e-3,
)  # fmt: skip
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _CIFAR,
        replace(_SMALL_CIFAR, name="cifar10-vit", architecture="vit"),
        replace(_SMALL_CIFAR, name="cifar10-plain", architecture="cnn-plain"),
        replace(_SMALL_CIFAR, name="cifar10-mobilenet", architecture="mobilenetv2"),
        replace(_SMALL_CIFAR, name="cifar10-relearned", architecture="cnn-plain", downstream=_CIFAR.source),
        _FASHION,
        replace(_FASHION, name="fashion-plain", architecture="cnn-plain"),
        Protocol(
            "digits", "digits", (0, 2, 4, 6, 8), (1, 3, 5, 7, 9), "cnn-batch", 100, size=16, width=8, epochs=20,
            shots=50, probe_examples=200, test_examples=450, finetuning_epochs=20,
            finetuning_learning_rates=(1e-3, 3e-3, 6e-3, 1.2e-2), choosing_draws=3,
            pretraining_seeds=(0, 1, 2, 3, 4), finetuning_seeds=(0, 1, 2, 3),
        ),
        Protocol(
            "wordnet", "wordnet", (4, 6, 10, 15, 18, 20, 26, 27), (5, 7, 8, 9, 11, 13, 14, 17), "text-transformer",
            3000, epochs=8, learning_rate=1e-3, augment=False, choosing_draws=3,
        ),
        replace(
            _CIFAR, name="cifar10-resnet18", architecture="resnet18", epochs=60, epochs_per_stage=10, shots=500,
            finetuning_epochs=40, multiples=(2, 4, 8), pretraining_seeds=(0, 1, 2, 3, 4),
            finetuning_seeds=(0, 1, 2, 3), tier="gpu",
        ),
    )
}  # fmt: skip
