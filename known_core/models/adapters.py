"""LoRA adapters as PEFT stores them: the base model is frozen; the adapter alone is trained, forgotten, predicted."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.models.base import (
    Library,
    Shapes,
    bounded_construction,
    differences,
    library_on,
    raise_mismatch,
    save_state,
)
from known_core.models.config import ADAPTER_CONFIG, check_sizes
from known_core.models.transformers_models import TransformersNetwork, fresh_tensors

_FIELDS = (  # of LoraConfig
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "fan_in_fan_out", "use_rslora",
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "task_type", "lora_bias", "target_parameters",
)  # fmt: skip
_WITHOUT_EFFECT = (  # on a trained adapter: where it came from, and how it was initialised
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
_INIT = "init_lora_weights"
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # others, such as PiSSA, change the base's weights
_INSIDE = "base_model.model."  # what peft puts before the base model's own names
_MAX_SIZES = 1_000_000  # the config's integers added up


class AdapterNetwork:
    """A LoRA adapter on a transformers model.

    Args:
        config: what its adapter_config.json holds.
        base: the network it was trained on.
        base_shapes: the tensors of the base model's checkpoint.
        base_folder: where that is; None where only names and shapes are checked.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``config_field_refused``.
    """

    library: Library = "peft"

    def __init__(
        self, config: dict[str, Any], base: TransformersNetwork, base_shapes: Shapes, base_folder: Path | None
    ) -> None:
        if config.get("peft_type") != "LORA":
            raise KnownError(
                "unsupported_architecture",
                f"peft_type is {str(config.get('peft_type'))[:80]!r}",
                "Give a LoRA adapter.",
            )
        refused = sorted(name for name in config.keys() - {*_FIELDS, *_WITHOUT_EFFECT, _INIT} if config[name])
        refused += [_INIT] if config.get(_INIT) not in _PLAIN_INITS else []
        if refused:
            raise KnownError(
                "config_field_refused",
                f"{ADAPTER_CONFIG} sets {refused[:5]}",
                "Only plain LoRA is read: save it without them.",
            )
        check_sizes(config, _MAX_SIZES, ADAPTER_CONFIG, "config_invalid")
        self.config, self.parsed = base.config, base.parsed
        self.architecture = f"LoRA on {base.architecture}"
        self.num_labels, self.label_names = base.num_labels, base.label_names
        self._base, self._base_shapes, self._base_folder = base, base_shapes, base_folder
        with library_on("peft", ADAPTER_CONFIG, "config_invalid"):
            fields = {name: config[name] for name in _FIELDS if config.get(name) is not None}
            self._lora = peft.LoraConfig(**fields, inference_mode=False)

    def check(self, shapes: Shapes) -> None:
        raise_mismatch(
            [
                problem
                for problem, name in self._base.problems(self._base_shapes)
                if f"{_INSIDE}{name}" not in shapes  # the adapter brings a head of its own
            ],
            "/model/base",
        )
        with library_on("peft", ADAPTER_CONFIG, "config_invalid"), torch.device("meta"), bounded_construction():
            model = self._adapted(self._base.model_class(self._base.parsed))
            expected = {name: tuple(tensor.shape) for name, tensor in _adapter_state(model).items()}
        raise_mismatch(differences(expected, shapes))

    def skeleton(self, num_labels: int | None = None) -> nn.Module:
        return self._adapted(self._base.skeleton(num_labels))

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        return self._filled(self._base.load(self._base_checkpoint()), checkpoint, set())

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        head = {f"{_INSIDE}{name}" for name in self._base.head_names(self._base.own_shapes())}
        return self._filled(self._base.load_with_new_head(self._base_checkpoint(), num_labels, seed), checkpoint, head)

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        save_state(_adapter_state(model), folder, original)

    def _base_checkpoint(self) -> Checkpoint:
        assert self._base_folder is not None
        return Checkpoint(self._base_folder)

    def _adapted(self, model: nn.Module) -> nn.Module:
        adapted: nn.Module = peft.PeftModel(model, self._lora)
        return adapted

    def _filled(self, base: nn.Module, checkpoint: Checkpoint, left_out: set[str]) -> nn.Module:
        model = self._adapted(base)
        tensors = {name: tensor.float() for name, tensor in fresh_tensors(checkpoint).items() if name not in left_out}
        peft.set_peft_model_state_dict(model, {**_adapter_state(model), **tensors})
        return model


def _adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(peft.get_peft_model_state_dict(model, save_embedding_layers=False))


def labels_of_head(base: TransformersNetwork, shapes: Shapes) -> int | None:
    """How many labels the head has that an adapter brings; None where it brings none.

    Args:
        shapes: the adapter's tensors.
    """
    names = [f"{_INSIDE}{name}" for name in base.head_names(base.own_shapes())] if base.num_labels else []
    return next((shapes[name][0] for name in names if shapes.get(name)), None)
