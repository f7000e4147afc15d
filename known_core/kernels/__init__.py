"""The engines that compute predictions: one interface, equal within a tolerance, chosen by device.

=========  ===============================  =================================================================
engine     runs on                          what it is
=========  ===============================  =================================================================
eager      any device, any floating dtype   the reference: the networks as they are written, chunk by chunk
cpu        x86-64 with AVX2, ARM            known.cpp: fused, compiled when the package is built
triton     CUDA                             fused, one pass over the states
=========  ===============================  =================================================================
"""

from typing import Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """Runs a hyper-model's network over the weights of one tile."""

    name: str
    device: torch.device  # where it wants states, and leaves predictions

    def chain(self, network: nn.Module, states: Tensor, steps: int) -> Tensor:
        """KNOWN (:class:`known_core.hypermodel.KnownNetwork`), each prediction entering the next window.

        Args:
            states: (5, n) float32, Θ_0 first, the most forgotten last.

        Returns:
            (steps, n) float32: Θ_-1, Θ_-2, ….
        """

    def products(self, states: Tensor) -> Tensor:
        """Between the displacements Φ_s - Θ_0, most data first, and Θ_0 itself.

        Args:
            states: (5, n) float32, Θ_0 first.

        Returns:
            (5, 5) float64 on the CPU: their scalar products, Θ_0 the last row and column.
        """

    def fan(self, network: nn.Module, states: Tensor, features: Tensor, unit: float, size: float) -> Tensor:
        """The scale-free design (:class:`known_core.scale_free.CoefficientNetwork`).

        Args:
            states: (5, n) float32, Θ_0 first, then the states of ever less data.
            features: (steps, STATISTICS) float32 on the CPU, of the whole tensor.
            unit: root mean square of the first displacement.
            size: that of Θ_0.

        Returns:
            (steps, n) float32.
        """
