"""Which tensors KNOWN predicts, and as what: by name and shape alone, so that any checkpoint can be read.

The paper predicts convolution kernels, matrices and biases, never normalisation parameters (section 4). Everything
else is carried over from Θ_0: norms, buffers, class and position tokens, and embeddings (their rows are seen so
unevenly that a step of forgetting is zero for most of them: there is no trajectory to read).
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch

Kind = Literal["conv", "fc", "bias"]
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # safetensors'

_EMBEDDING = re.compile(r"(^|\.)(\w*embed(ding|dings)?|embed_\w+|wte|wpe|shared|relative_attention_bias)\.weight$")
_MATRIX = re.compile(r"(weight|lora_[AB])$")
_FLOATING = frozenset({"F64", "F32", "F16", "BF16"})


_BUFFER = re.compile(r"(running_mean|running_var|num_batches_tracked|position_ids)$")


def kind_of_moving(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
    """The kind by rank alone, for methods that begin at Θ_0 and follow everything that training moves.

    Kernels have rank 3 or more, matrices and embeddings 2, all others 0 or 1. Only buffers are carried over: a
    normalisation parameter that stayed behind the kernels around it would fit neither what they were nor what they
    become.
    """
    if dtype not in _FLOATING or 0 in shapes[name] or _BUFFER.search(name):
        return None
    rank = len(shapes[name])
    return "bias" if rank < 2 else "fc" if rank == 2 else "conv"


def kind_of(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Kind | None:
    """The kind of one tensor, or None where it is carried over.

    Args:
        name: the tensor's name in the checkpoint.
        shapes: the shape of every tensor of the checkpoint; a bias is told from a norm's shift by its weight's rank.
        dtype: the tensor's safetensors dtype, such as "F32".
    """
    shape = shapes[name]
    if dtype not in _FLOATING or 0 in shape:
        return None
    if len(shape) == 1:
        if not name.endswith("bias"):
            return None
        weight = shapes.get(name.removesuffix("bias") + "weight")
        return "bias" if weight is None or len(weight) > 1 else None
    if len(shape) < 2 or not _MATRIX.search(name):
        return None
    if len(shape) > 2:
        return "conv"
    return None if _EMBEDDING.search(name) else "fc"
