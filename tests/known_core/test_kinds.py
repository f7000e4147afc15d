"""Which tensors are predicted: names and shapes of real models."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from known_core.kinds import DTYPE_NAMES, Kind, kind_of, kind_of_moving
from known_core.networks import build_network

TABLE: list[tuple[str, tuple[int, ...], Kind | None]] = [
    # transformers ResNet
    ("resnet.embedder.embedder.convolution.weight", (64, 3, 7, 7), "conv"),
    ("resnet.embedder.embedder.normalization.weight", (64,), None),
    ("resnet.embedder.embedder.normalization.bias", (64,), None),
    ("resnet.embedder.embedder.normalization.running_mean", (64,), None),
    ("resnet.embedder.embedder.normalization.running_var", (64,), None),
    ("classifier.1.weight", (10, 512), "fc"),
    ("classifier.1.bias", (10,), "bias"),
    # transformers ViT
    ("vit.embeddings.cls_token", (1, 1, 192), None),
    ("vit.embeddings.position_embeddings", (1, 197, 192), None),
    ("vit.embeddings.patch_embeddings.projection.weight", (192, 3, 16, 16), "conv"),
    ("vit.embeddings.patch_embeddings.projection.bias", (192,), "bias"),
    ("vit.encoder.layer.0.attention.attention.query.weight", (192, 192), "fc"),
    ("vit.encoder.layer.0.attention.attention.query.bias", (192,), "bias"),
    ("vit.encoder.layer.0.layernorm_before.weight", (192,), None),
    ("vit.encoder.layer.0.layernorm_before.bias", (192,), None),
    # BERT
    ("bert.embeddings.word_embeddings.weight", (30522, 768), None),
    ("bert.embeddings.position_embeddings.weight", (512, 768), None),
    ("bert.embeddings.token_type_embeddings.weight", (2, 768), None),
    ("bert.embeddings.LayerNorm.weight", (768,), None),
    ("bert.embeddings.LayerNorm.bias", (768,), None),
    ("bert.embeddings.LayerNorm.gamma", (768,), None),
    ("bert.encoder.layer.0.output.dense.weight", (768, 3072), "fc"),
    ("bert.encoder.layer.0.output.dense.bias", (768,), "bias"),
    # GPT-2, T5, Llama
    ("transformer.wte.weight", (50257, 768), None),
    ("wpe.weight", (1024, 768), None),
    ("transformer.h.0.attn.c_attn.weight", (768, 2304), "fc"),
    ("transformer.h.0.attn.c_attn.bias", (2304,), "bias"),
    ("transformer.h.0.ln_1.weight", (768,), None),
    ("transformer.h.0.ln_1.bias", (768,), None),
    ("shared.weight", (32128, 512), None),
    ("encoder.embed_tokens.weight", (32128, 512), None),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", (512, 512), "fc"),
    ("model.layers.0.input_layernorm.weight", (2048,), None),
    ("lm_head.weight", (32000, 2048), "fc"),
    # others
    ("attn.in_proj_weight", (192, 64), "fc"),
    ("attn.in_proj_bias", (192,), "bias"),
    ("base.q.lora_A.weight", (8, 64), "fc"),
    ("base.q.lora_B.default.weight", (64, 8), "fc"),
    ("base.q.lora_A", (8, 64), "fc"),
    ("swin.layers.0.attention.relative_position_bias_table", (169, 4), None),
    ("layer_scale.gamma", (96,), None),
    ("logit_scale", (), None),
    ("conv1d.weight", (64, 32, 3), "conv"),
    ("conv3d.weight", (8, 3, 3, 3, 3), "conv"),
    ("mobilenet.prelu.weight", (64,), None),
    ("cls.predictions.bias", (30522,), "bias"),
]


@pytest.mark.parametrize(("name", "shape", "expected"), TABLE)
def test_kinds_of_real_names(name: str, shape: tuple[int, ...], expected: Kind | None) -> None:
    shapes = {other: other_shape for other, other_shape, _ in TABLE}
    assert kind_of(name, shapes, "F32") == expected
    assert kind_of(name, shapes, "BF16") == expected


@pytest.mark.parametrize("dtype", ["I64", "I8", "U8", "BOOL"])
def test_integer_tensors_are_carried(dtype: str) -> None:
    assert kind_of("fc.weight", {"fc.weight": (4, 4)}, dtype) is None
    assert kind_of("fc.bias", {"fc.weight": (4, 4), "fc.bias": (4,)}, dtype) is None


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0, 3, 3)])
def test_empty_tensors_are_carried(shape: tuple[int, ...]) -> None:
    name = "fc.bias" if len(shape) == 1 else "fc.weight"
    assert kind_of(name, {name: shape}, "F32") is None


def test_a_table_of_relative_positions_is_carried() -> None:
    """T5's relative_attention_bias is an nn.Embedding: 32 buckets, unevenly seen, like any other embedding."""
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert kind_of(name, {name: (32, 8)}, "F32") is None


MOVING: list[tuple[str, tuple[int, ...], Kind | None]] = [
    ("embedder.convolution.weight", (64, 3, 7, 7), "conv"),
    ("conv1d.weight", (64, 32, 3), "conv"),
    ("vit.embeddings.cls_token", (1, 1, 192), "conv"),
    ("fc.weight", (10, 512), "fc"),
    ("fc.bias", (10,), "bias"),
    ("embedder.normalization.weight", (64,), "bias"),
    ("embedder.normalization.bias", (64,), "bias"),
    ("embedder.normalization.running_mean", (64,), None),
    ("embedder.normalization.running_var", (64,), None),
    ("embedder.normalization.num_batches_tracked", (), None),
    ("bert.embeddings.position_ids", (1, 512), None),
    ("bert.embeddings.word_embeddings.weight", (30522, 768), "fc"),
    ("bert.embeddings.LayerNorm.weight", (768,), "bias"),
    ("transformer.wte.weight", (50257, 768), "fc"),
    ("relative_position_bias_table", (169, 4), "fc"),
    ("layer_scale.gamma", (96,), "bias"),
    ("logit_scale", (), "bias"),
    ("none.weight", (0, 3), None),
]


@pytest.mark.parametrize(("name", "shape", "expected"), MOVING)
def test_everything_that_training_moves_goes_by_its_rank(
    name: str, shape: tuple[int, ...], expected: Kind | None
) -> None:
    for dtype in ("F64", "F32", "F16", "BF16"):
        assert kind_of_moving(name, {name: shape}, dtype) == expected
    for dtype in ("I64", "U8", "BOOL", "other"):
        assert kind_of_moving(name, {name: shape}, dtype) is None


@pytest.mark.parametrize("architecture", ["resnet", "mobilenetv2", "vit", "mixer", "bert"])
def test_every_parameter_moves_and_no_buffer(architecture: str) -> None:
    model = _bert() if architecture == "bert" else build_network(architecture, 5, 3, 28, 8)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    moving = {name for name, tensor in state.items() if kind_of_moving(name, shapes, DTYPE_NAMES.get(tensor.dtype, ""))}
    assert moving == {name for name, _ in model.named_parameters()}


def _kinds(model: nn.Module) -> dict[str, Kind | None]:
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    return {name: kind_of(name, shapes, dtypes[tensor.dtype]) for name, tensor in state.items()}


def _bert() -> nn.Module:
    config: Any = transformers.AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("architecture", ["resnet", "vit", "cnn-batch", "cnn-plain", "bert"])
def test_whole_networks(architecture: str) -> None:
    """Every convolution and linear layer is predicted; no normalisation, embedding, token or buffer is."""
    model = _bert() if architecture == "bert" else build_network(architecture, 5, 3, 28, 8)
    expected: dict[str, Kind | None] = dict.fromkeys(model.state_dict())
    for prefix, module in model.named_modules():
        for part, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                kind: Kind = "conv" if isinstance(module, nn.Conv2d) else "fc"
                expected[part] = "bias" if parameter.ndim == 1 else kind
    assert _kinds(model) == expected
    assert {"fc", "bias", None} <= set(expected.values()) or architecture == "cnn-plain"
