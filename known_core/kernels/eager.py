"""The reference engine: the networks as they are written, on any device and in any floating dtype."""

import torch
from torch import Tensor, nn

_CHUNK = 4_096  # weights a call; the fastest on a CPU (docs/experiments.md)


class Eager:
    """See :class:`~known_core.kernels.Engine`."""

    name = "eager"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @torch.inference_mode()
    def chain(self, network: nn.Module, states: Tensor, steps: int) -> Tensor:
        predictions = states.new_empty(steps, states.shape[1])
        for begin in range(0, states.shape[1], _CHUNK):
            part = slice(begin, begin + _CHUNK)
            window = states[:, part].flip(0).T  # (n, 5), the most forgotten first
            for prediction in predictions:
                prediction[part] = window[:, -1] + network(window)
                window = torch.cat([window[:, 1:], prediction[part, None]], dim=1)
        return predictions

    @torch.inference_mode()
    def products(self, states: Tensor) -> Tensor:
        rows = torch.cat([states[1:] - states[0], states[:1]]).double()
        return (rows @ rows.T).cpu()

    @torch.inference_mode()
    def fan(self, network: nn.Module, states: Tensor, features: Tensor, unit: float, size: float) -> Tensor:
        predictions = states.new_empty(len(features), states.shape[1])
        features = features.to(states)
        for begin in range(0, states.shape[1], _CHUNK):
            part = slice(begin, begin + _CHUNK)
            theta = states[0, part]
            inputs = torch.cat([(states[1:, part] - theta) / unit, theta[None] / size]).T
            for prediction, of_step in zip(predictions, features, strict=True):
                prediction[part] = theta + unit * network(of_step, inputs)
        return predictions
