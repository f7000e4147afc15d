"""The dtypes of safetensors, by its own names, in torch; and what readers and writers do with elements.

They work in pieces that PyTorch does not share out among OpenMP's threads. Those of a second team slow the first one's
every operation down (eager predictions then take three times as long), and after each operation they spin and take the
processor from the engine (docs/experiments.md).
"""

import torch
from torch import Tensor

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_PIECE = 1 << 14  # elements, below at::internal::GRAIN_SIZE


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: by its extremes, an order of magnitude faster than ``isfinite``.

    Args:
        tensor: (n,), on the CPU.
    """
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).reshape(-1)
    if tensor.itemsize == 1:
        tensor = tensor.float()  # float8 has no extremes
    extremes = [extreme for piece in torch.split(tensor, _PIECE) for extreme in torch.aminmax(piece)]
    return bool(torch.isfinite(torch.stack(extremes)).all())


def convert(source: Tensor, target: Tensor) -> Tensor:
    """Copy (n,) elements on the CPU to another dtype; returns the target."""
    for piece, place in zip(torch.split(source, _PIECE), torch.split(target, _PIECE), strict=True):
        place.copy_(piece)
    return target
