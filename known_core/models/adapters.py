"""LoRA adapters as PEFT stores them: the base model is frozen; the adapter alone is trained, forgotten, predicted."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.models.base import Library, Shapes, bounded_construction, library_on, raise_mismatch, save_state
from known_core.models.config import check_sizes
from known_core.models.transformers_models import TransformersNetwork, fresh_tensors

CONFIG = "adapter_config.json"
_FIELDS = (  # of LoraConfig; others can name modules to import or data to initialise from
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "fan_in_fan_out", "use_rslora",
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "task_type", "lora_bias", "target_parameters",
)  # fmt: skip
_REFUSED = ("megatron_config", "auto_mapping", "trainable_token_indices", "layer_replication", "arrow_config")
_MAX_SIZES = 1_000_000  # the config's integers added up


class AdapterNetwork:
    """A LoRA adapter on a transformers model.

    Args:
        config: what its adapter_config.json holds.
        base: the network it was trained on.
        base_folder: where the base model's checkpoint is; None where only names and shapes are checked.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``config_field_refused``.
    """

    library: Library = "peft"

    def __init__(self, config: dict[str, Any], base: TransformersNetwork, base_folder: Path | None) -> None:
        if config.get("peft_type") != "LORA":
            raise KnownError(
                "unsupported_architecture",
                f"peft_type is {str(config.get('peft_type'))[:80]!r}",
                "Give a LoRA adapter.",
            )
        if refused := [name for name in _REFUSED if config.get(name)]:
            raise KnownError("config_field_refused", f"{CONFIG} sets {refused}", "Save the adapter without them.")
        check_sizes(config, _MAX_SIZES, CONFIG, "config_invalid")
        self.config, self.architecture = base.config, f"LoRA on {base.architecture}"
        self.num_labels, self.label_names = base.num_labels, base.label_names
        self._base, self._base_folder = base, base_folder
        import peft  # takes two seconds: only where there is an adapter

        with library_on("peft", CONFIG, "config_invalid"):
            fields = {name: config[name] for name in _FIELDS if config.get(name) is not None}
            self._lora = peft.LoraConfig(**fields, inference_mode=False)

    def check(self, shapes: Shapes) -> None:
        with library_on("peft", CONFIG, "config_invalid"), torch.device("meta"), bounded_construction():
            model = self._adapted(self._base.model_class(self._base.parsed))
            expected = {name: tuple(tensor.shape) for name, tensor in _adapter_state(model).items()}
        problems = [f"missing {name}" for name in expected.keys() - shapes.keys()]
        problems += [f"unexpected {name}" for name in shapes.keys() - expected.keys()]
        problems += [
            f"{name} is {list(shapes[name])}, the adapter's config asks for {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ]
        raise_mismatch(problems)

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        return self._filled(self._base.load(self._base_checkpoint()), checkpoint, set())

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        base = self._base_checkpoint()
        head = {name.rpartition(".")[0] for name in self._base.head_names(base.shapes)}
        left_out = {name for name in checkpoint.tensors if any(f".{module}." in name for module in head)}
        return self._filled(self._base.load_with_new_head(base, num_labels, seed), checkpoint, left_out)

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        save_state(_adapter_state(model), folder, original)

    def _base_checkpoint(self) -> Checkpoint:
        assert self._base_folder is not None
        return Checkpoint(self._base_folder)

    def _adapted(self, model: nn.Module) -> nn.Module:
        import peft

        adapted: nn.Module = peft.PeftModel(model, self._lora)
        return adapted

    def _filled(self, base: nn.Module, checkpoint: Checkpoint, left_out: set[str]) -> nn.Module:
        model = self._adapted(base)
        tensors = {name: tensor.float() for name, tensor in fresh_tensors(checkpoint).items() if name not in left_out}
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, tensors)
        return model


def _adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
