"""transformers models without a head of their own, under a linear head that is given or fitted, and never trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.header import read_header
from known_core.checkpoint.source import Source
from known_core.errors import KnownError
from known_core.models.base import Library, Shapes
from known_core.models.transformers_models import TransformersNetwork

HEAD = "head.safetensors"
_MAX_HEAD_BYTES = 1 << 30


class OnFeatures(nn.Module):
    """A linear head on pooled features.

    Texts are pooled as the mean over their tokens; images as the network pools them itself, else over all positions.
    """

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network, self.head = network, head

    def features(self, **inputs: Tensor) -> Tensor:
        """(N, features) of a batch without labels."""
        outputs = self.network(**inputs)
        hidden: Tensor = outputs["last_hidden_state"]
        if "input_ids" in inputs:
            mask = inputs["attention_mask"].unsqueeze(2).to(hidden.dtype)
            return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if (pooled := outputs.get("pooler_output")) is not None:
            return pooled.flatten(1)  # type: ignore[no-any-return]
        return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Args: labels: (N,) int64. Returns: logits (N, classes), and loss with labels."""
        logits = self.head(self.features(**inputs))
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class FeatureNetwork:
    """A model without a head; :meth:`take_head` gives it one.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
    """

    library: Library = "transformers"

    def __init__(self, config: dict[str, Any]) -> None:
        self._base = TransformersNetwork(config, MODEL_MAPPING_NAMES, "a model without a head", labels=False)
        self.config, self.architecture = config, self._base.architecture
        self.num_labels: int = 0
        self.label_names: list[str] | None = None
        self.takes = self._base.model_class.main_input_name
        self.parsed: Any = self._base.parsed
        sizes = (getattr(self.parsed, "hidden_size", None), *(getattr(self.parsed, "hidden_sizes", None) or ()))
        self._width = sizes[0] or sizes[-1]
        if self.takes not in ("input_ids", "pixel_values") or self.parsed.sub_configs or self.parsed.is_encoder_decoder:
            raise KnownError(
                "unsupported_architecture",
                f"{self.architecture} is not one encoder of texts or images",
                "Give one such as BertModel or ViTModel, or a checkpoint with a head.",
            )
        self._head: Mapping[str, Tensor] = {}

    def take_head(self, tensors: Mapping[str, Tensor]) -> None:
        """From now on its head.

        Args:
            tensors: ``weight`` (classes, features) and perhaps ``bias`` (classes,).

        Raises:
            KnownError: ``tensors_mismatch``, ``nonfinite_weights``.
        """
        weight, bias = tensors.get("weight"), tensors.get("bias")
        if (
            weight is None
            or weight.ndim != 2
            or len(weight) < 2
            or weight.shape[1] != self._width
            or tensors.keys() - {"weight", "bias"}
            or (bias is not None and bias.shape != weight.shape[:1])
        ):
            raise KnownError(
                "tensors_mismatch",
                f"the head is {[f'{name} {list(tensor.shape)}' for name, tensor in tensors.items()][:5]}",
                f'{HEAD} holds "weight" [classes, {self._width}] and, if there is one, "bias" [classes].',
            )
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise KnownError("nonfinite_weights", f"{HEAD} holds NaN or infinite values", "Give the head again.")
        self._head, self.num_labels = tensors, len(weight)

    def check(self, shapes: Shapes) -> None:
        self._base.check(shapes)

    def skeleton(self, num_labels: int | None = None) -> OnFeatures:
        head = nn.Linear(self._width, num_labels or self.num_labels or 2).requires_grad_(False)
        return OnFeatures(self._base.skeleton(), head)

    def load(self, checkpoint: Checkpoint) -> OnFeatures:
        weight, bias = self._head["weight"], self._head.get("bias")
        head = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
        head.load_state_dict(dict(self._head))
        return OnFeatures(self._base.load(checkpoint), head.requires_grad_(False))

    def load_bare(self, checkpoint: Checkpoint) -> OnFeatures:
        """Without a head: for its features alone."""
        return OnFeatures(self._base.load(checkpoint), nn.Linear(1, 1))

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> OnFeatures:
        network = self._base.load(checkpoint)
        transformers.set_seed(seed)
        return OnFeatures(network, nn.Linear(self._head["weight"].shape[1], num_labels))

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        assert isinstance(model, OnFeatures)
        self._base.save(model.network, folder, original)


def read_head(source: Source) -> dict[str, Tensor] | None:
    """The head beside the weights, float32, or None where there is none.

    Raises:
        KnownError: what :func:`~known_core.checkpoint.header.read_header` raises, ``tensors_mismatch``.
    """
    if HEAD not in source.names():
        return None
    size = source.size(HEAD)
    if size > _MAX_HEAD_BYTES:
        raise KnownError("tensors_mismatch", f"{HEAD} has {size} bytes", f"At most {_MAX_HEAD_BYTES}.")
    with source.open(HEAD) as stream:
        read_header(stream, size, HEAD)
    with source.open(HEAD) as stream:
        return {name: tensor.float() for name, tensor in safetensors.torch.load(stream.read()).items()}


def fit_head(features: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """Multinomial logistic regression, deterministic: L-BFGS from zero in float64, squared norm of weight 1/(2 N).

    Args:
        features: (N, features). labels: (N,) int64.

    Returns:
        ``weight`` (classes, features) and ``bias`` (classes,), float32.
    """
    inputs = features.double()
    centre, scale = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    inputs = (inputs - centre) / scale
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(inputs, weight, bias), labels) + weight.square().sum() / (2 * len(inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain = weight / scale
        return {"weight": plain.float(), "bias": (bias - plain @ centre).float()}
