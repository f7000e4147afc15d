"""The fused engine for CPUs: known.cpp on every core. A tile's weights are shared out; each is computed the same way
wherever it falls, so the bytes do not depend on the number of threads."""

import functools
import importlib
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from known_core.hypermodel import STATES, KnownNetwork
from known_core.kernels.packing import pack_chain, pack_fan
from known_core.scale_free import CoefficientNetwork


class _Function(Protocol):
    def __call__(
        self, parameters: int, states: int, predictions: int, stride: int, count: int, steps: int, /
    ) -> None: ...


class _Extension(Protocol):
    """known.cpp, compiled: addresses of float32, the distance between rows in floats."""

    ROWS: int
    products: _Function
    chain: _Function
    fan: _Function


_SHARE = 8_192  # weights a thread takes at least: 0.3 ms
_PRODUCTS_SHARE = 1 << 16  # weights summed together, however many threads there are


class Cpu:
    """See :class:`~known_core.kernels.Engine`.

    Raises:
        ImportError: where nothing was compiled for this processor.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self) -> None:
        _compiled()

    def chain(self, network: nn.Module, states: Tensor, steps: int) -> Tensor:
        assert isinstance(network, KnownNetwork)
        return _shared(_compiled().chain, _packed(network), states, steps)

    def products(self, states: Tensor) -> Tensor:
        states = states.float().contiguous()
        begins = range(0, states.shape[1], _PRODUCTS_SHARE)
        sums = torch.empty(len(begins), STATES, STATES, dtype=torch.float64)

        def run(index: int) -> None:
            begin = begins[index]
            count = min(_PRODUCTS_SHARE, states.shape[1] - begin)
            at = states.data_ptr() + 4 * begin
            _compiled().products(0, at, sums[index].data_ptr(), states.shape[1], count, 0)

        list(_pool(torch.get_num_threads()).map(run, range(len(begins))))
        return sums.sum(0)

    def fan(self, network: nn.Module, states: Tensor, features: Tensor, unit: float, size: float) -> Tensor:
        assert isinstance(network, CoefficientNetwork)
        return _shared(_compiled().fan, pack_fan(network, features, unit, size), states, len(features))


@functools.cache
def _compiled() -> _Extension:
    """The extension for this processor; setup.py builds one for each instruction set."""
    level = {"AVX512": "_x86_64_v4", "AVX2": "_x86_64_v3"}.get(torch.backends.cpu.get_cpu_capability(), "_generic")
    if level == "_generic" and platform.machine() in ("x86_64", "AMD64"):
        raise ImportError("this processor has no AVX2")
    return cast(_Extension, importlib.import_module(f"known_core.kernels.{level}"))


_packed_networks: WeakKeyDictionary[KnownNetwork, tuple[list[Tensor], Tensor]] = WeakKeyDictionary()


def _packed(network: KnownNetwork) -> Tensor:
    """The network's parameters as known.cpp reads them; packed again only when they changed.

    Packing a tile at a time would cost 8 ms of a core each: OpenMP's threads spin after its small products. Comparing
    the 9,425 values costs a hundredth of that, and nothing that changes them goes unseen.
    """
    known = _packed_networks.get(network)
    parameters = list(network.parameters())
    if known is None or not all(map(torch.equal, known[0], parameters)):
        known = [parameter.detach().clone() for parameter in parameters], pack_chain(network, _compiled().ROWS)
        _packed_networks[network] = known
    return known[1]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="known-cpu")


def _shared(function: _Function, parameters: Tensor, states: Tensor, steps: int) -> Tensor:
    """Run a compiled function over all weights, a share to each of torch's threads."""
    states = states.float().contiguous()
    count, threads = states.shape[1], torch.get_num_threads()
    predictions = torch.empty(steps, count)
    share = max(_SHARE, -(-count // threads))

    def run(begin: int) -> None:
        function(
            parameters.data_ptr(),
            states.data_ptr() + 4 * begin,
            predictions.data_ptr() + 4 * begin,
            count,
            min(share, count - begin),
            steps,
        )

    list(_pool(threads).map(run, range(0, count, share)))
    return predictions
