"""The dtypes of safetensors, by its own names, in torch; and what readers and writers do with elements.

They work in pieces that PyTorch does not share out among threads. With OpenMP teams of their own beside the main
thread's, libgomp stops spinning and every operation of the main thread waits for a wake-up: eager predictions take
three times as long (docs/experiments.md).
"""

import torch
from torch import Tensor

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
_PIECE = 1 << 14  # elements, below at::internal::GRAIN_SIZE


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: by its extremes, an order of magnitude faster than ``isfinite``.

    Args:
        tensor: (n,), on the CPU.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return all(_finite_piece(piece) for piece in torch.split(tensor, _PIECE) if len(piece))


def _finite_piece(piece: Tensor) -> bool:
    if piece.is_complex():
        piece = torch.view_as_real(piece)
    extremes = torch.aminmax(piece.float() if piece.itemsize == 1 else piece)  # float8 has no extremes
    return bool(torch.isfinite(torch.stack(extremes)).all())


def convert(source: Tensor, target: Tensor) -> Tensor:
    """Copy (n,) elements on the CPU to another dtype; returns the target."""
    for piece, place in zip(torch.split(source, _PIECE), torch.split(target, _PIECE), strict=True):
        place.copy_(piece)
    return target
