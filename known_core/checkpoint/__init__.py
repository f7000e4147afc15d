"""Checkpoints: validated safetensors in, atomic safetensors out, with everything beside the weights kept."""

from known_core.checkpoint.reader import Checkpoint, check_same_tensors
from known_core.checkpoint.writer import TensorWriter

__all__ = ["Checkpoint", "TensorWriter", "check_same_tensors"]
