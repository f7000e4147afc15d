"""transformers checkpoints: a folder that save_pretrained wrote, of any auto class."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.models.base import Library, Shapes, bounded_construction, library_on, raise_mismatch, save_state
from known_core.models.config import check_sizes

_MAX_MODEL_SIZES = 2_000_000  # a config's integers added up; 1.2 million in the largest of transformers (vocabularies)

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class TransformersNetwork:
    """A transformers checkpoint folder.

    Args:
        config: what its config.json holds.
        classes: the class names that a task takes, by model type; the MAPPING_NAMES of an auto class.
        purpose: what they are, for messages: "an image classifier".
        labels: whether the head has labels: the config's id2label.

    Raises:
        KnownError: ``unsupported_architecture``, ``config_invalid``, ``model_too_large``.
    """

    library: Library = "transformers"

    def __init__(
        self, config: dict[str, Any], classes: Mapping[str, Any], purpose: str, *, labels: bool = True
    ) -> None:
        model_type = config.get("model_type")
        names = classes.get(str(model_type), ())
        allowed = (names,) if isinstance(names, str) else tuple(names)
        architectures = config.get("architectures") or list(allowed[:1])
        if not isinstance(architectures, list) or not architectures or architectures[0] not in allowed:
            raise KnownError(
                "unsupported_architecture",
                f"model_type {str(model_type)[:80]!r} with architectures {str(architectures)[:120]} is not {purpose} "
                "that transformers has",
                'Give a checkpoint whose config.json has "model_type" and a class of this task in "architectures", or '
                "name another task.",
            )
        self.architecture: str = architectures[0]
        self.model_class = getattr(transformers, self.architecture)
        sizes = {name: value for name, value in config.items() if name != "label2id"}  # its integers number labels
        check_sizes(sizes, _MAX_MODEL_SIZES, "the config", "model_too_large")
        self.config = config
        with library_on("transformers", "the config", "config_invalid"):
            self.parsed = transformers.AutoConfig.for_model(**config)
        self.num_labels, self.label_names = _labels(self.parsed) if labels else (0, None)

    def build(self, config: Any, tensors: dict[str, Tensor], **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """A module, and transformers' account of missing, unexpected and mismatched names."""
        model, info = self.model_class.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        return model, info

    def check(self, shapes: Shapes) -> None:
        problems = [problem for problem, _ in self.problems(shapes)]
        # Alone they do no harm, and published checkpoints have them (heads of their pre-training): carried over.
        unexpected = sorted(self._account(self.parsed, shapes)["unexpected_keys"])
        if problems or len(unexpected) > len(shapes) // 2:
            raise_mismatch(problems + [f"unexpected {name}" for name in unexpected])

    def problems(self, shapes: Shapes) -> list[tuple[str, str]]:
        """What is missing from a checkpoint, or has another shape, in words and by the network's own name."""
        info = self._account(self.parsed, shapes)
        return [(f"missing {name}", name) for name in info["missing_keys"]] + [
            (f"{name} is {list(got)}, the config asks for {list(wanted)}", name)
            for name, got, wanted in info["mismatched_keys"]
        ]

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor under the network's own name."""
        with library_on("transformers", "the config", "config_invalid"), torch.device("meta"), bounded_construction():
            return {name: tuple(tensor.shape) for name, tensor in self.model_class(self.parsed).state_dict().items()}

    def _account(self, config: Any, shapes: Shapes) -> dict[str, Any]:
        with library_on("transformers", "the config", "config_invalid"), bounded_construction():
            tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            return self.build(config, tensors, device_map="meta")[1]

    def skeleton(self, num_labels: int | None = None) -> nn.Module:
        config = self.parsed if num_labels is None else self.with_labels(num_labels)
        network: nn.Module = self.model_class(config)
        return network

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        return self.build(self.parsed, fresh_tensors(checkpoint), dtype=torch.float32)[0]

    def load_with_new_head(self, checkpoint: Checkpoint, num_labels: int, seed: int) -> nn.Module:
        head = self.head_names(checkpoint.shapes)
        tensors = {name: tensor for name, tensor in fresh_tensors(checkpoint).items() if name not in head}
        transformers.set_seed(seed)
        return self.build(self.with_labels(num_labels), tensors, dtype=torch.float32)[0]

    def with_labels(self, num_labels: int) -> Any:
        """The config with another number of labels, without names."""
        config = type(self.parsed).from_dict({**self.parsed.to_dict(), "id2label": None, "label2id": None})
        config.num_labels = num_labels
        return config

    def head_names(self, shapes: Shapes) -> set[str]:
        """The tensors whose shape depends on the number of labels."""
        mismatched = self._account(self.with_labels(self.num_labels + 1), shapes)["mismatched_keys"]
        return {name for name, _, _ in mismatched}

    def save(self, model: nn.Module, folder: Path, original: Checkpoint) -> None:
        assert isinstance(model, transformers.PreTrainedModel)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            model.save_pretrained(temporary, max_shard_size="1TB")  # under the names that the class is stored with
            stored = Checkpoint(Path(temporary))
            state = {name: stored.read(name) for name in stored.tensors}
        base = f"{self.model_class.base_model_prefix}."
        bare = {name.removeprefix(base): tensor for name, tensor in state.items() if name.startswith(base)}
        # the model's own names also say what of the original is tied, and so stored once by save_pretrained
        save_state({**bare, **model.state_dict(), **state}, folder, original)


def _labels(config: Any) -> tuple[int, list[str] | None]:
    id2label: dict[int, str] = getattr(config, "id2label", None) or {}
    count = len(id2label)
    if id2label.keys() != set(range(count)):
        raise KnownError(
            "config_invalid",
            f"id2label numbers its labels {str(list(id2label))[:80]}",
            f"Number the {count} labels from 0, as the outputs are.",
        )
    labels = [str(id2label[index]) for index in range(count)]
    generic = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    return count, None if generic else labels


def fresh_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Copies: from_pretrained may adopt the tensors it is given, and training writes into them."""
    return {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
