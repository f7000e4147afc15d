"""Every engine against the reference in float64: ordinary, extreme and half-precision states."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from known_core.errors import KnownError
from known_core.hypermodel import Known, KnownNetwork
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.kernels import Engine, cpu
from known_core.kernels.choice import choose_engine
from known_core.kernels.cpu import Cpu
from known_core.kernels.eager import Eager
from known_core.kernels.packing import pack_chain
from known_core.kinds import Kind
from known_core.scale_free import ScaleFreeKnown
from tests.known_core.conftest import seeded_scale_free

TOLERANCE = 5e-6
"""Of the largest residual of a tensor, besides one rounding of each prediction to float32. Float32 products of at most
73 terms are good to about 1e-6; the exponential multiplies the error of its argument, which grows with the states."""
KINDS: tuple[Kind, ...] = ("conv", "fc", "bias")
SIZES = (1, 47, 48, 49, 4_097, 10_001)  # a block is 48 weights with AVX-512, an eager chunk 4,096


def seeded_known() -> Known:
    torch.manual_seed(0)
    return Known().eval()


SHIPPED: dict[str, Callable[[], Known | ScaleFreeKnown]] = {
    name: lambda name=name: load_hypermodel(hypermodel_path(name))  # type: ignore[misc]
    for name in ("known-paper", "known-v1")
}
MODELS: dict[str, Callable[[], Known | ScaleFreeKnown]] = {
    "chain": seeded_known,
    "fan": seeded_scale_free,
    **SHIPPED,
}


def states(count: int, seed: int = 0) -> Tensor:
    """(5, count): weights of a trained network and small steps away from them."""
    generator = torch.Generator().manual_seed(seed)
    steps = 2e-3 * torch.randn(5, count, generator=generator).cumsum(0)
    return 0.1 * torch.randn(count, generator=generator) + steps - steps[0]


def predictions(known: Known | ScaleFreeKnown, engine: Engine, kind: Kind, window: Tensor, steps: int) -> Tensor:
    known.engine = engine
    return known.predict(kind, window, known.survey(kind, [window.float()], 0.5, steps), 0.5, steps)


def reference(known: Known | ScaleFreeKnown, kind: Kind, window: Tensor, steps: int) -> Tensor:
    return predictions(copy.deepcopy(known).double(), Eager(), kind, window.double(), steps)


def check(found: Tensor, expected: Tensor, window: Tensor) -> None:
    residual = (expected - window[0]).abs().max()
    rounding = torch.finfo(torch.float32).eps * len(expected) * torch.maximum(expected.abs(), window[0].abs().double())
    assert found.dtype == torch.float32
    assert (((found - expected).abs() - rounding) <= TOLERANCE * residual).all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_engines_agree_with_the_reference(
    engine: str, known: Callable[[], Known | ScaleFreeKnown], kind: Kind, steps: int
) -> None:
    model = known()
    for count in SIZES:
        window = states(count, seed=count)
        found = predictions(model, choose_engine("cpu", engine), kind, window, steps)
        check(found, reference(model, kind, window, steps), window)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("known", SHIPPED.values(), ids=SHIPPED)
def test_half_precision_states(known: Callable[[], Known | ScaleFreeKnown], dtype: torch.dtype) -> None:
    model, window = known(), states(1_000).to(dtype).float()
    for kind in KINDS:
        check(predictions(model, Cpu(), kind, window, 3), reference(model, kind, window, 3), window)


def extreme_states() -> Tensor:
    columns = [
        [0.0] * 5, [1e-40] * 5, [1.0, -1.0, 1.0, -1.0, 1.0], [1e6, -1e6, 1e6, -1e6, 1e6], [-1e6] * 5, [1e30] * 5,
        [1e30, -1e30, 0.0, 1e30, -1e30], [3e38, 3e38, 3e38, 3e38, 3e38], [65504.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 3e4, 9.0, 1.0, 0.0],
    ]  # fmt: skip
    return torch.tensor(columns).T.contiguous()


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_extreme_states_give_no_nan_and_no_step_beyond_one(engine: str, size: float) -> None:
    """``size`` 30 makes exponents that overflow many times over."""
    known, window = seeded_known(), extreme_states()
    with torch.no_grad():
        for parameter in known.parameters():
            parameter.mul_(size)
    for kind in KINDS:
        found = predictions(known, choose_engine("cpu", engine), kind, window, 3)
        assert torch.isfinite(found).all()
        assert ((found - window[0]).abs() <= 3 + 1e-6 * window[0].abs()).all()


@pytest.mark.parametrize("engine", ["eager", "cpu"])
def test_extreme_fans_give_no_nan(engine: str) -> None:
    window = extreme_states()[
        :, [0, 1, 2, 3, 4, 8, 9]
    ]  # displacements of 1e30 would overflow whatever is done with them
    found = predictions(seeded_scale_free(size=0.5), choose_engine("cpu", engine), "fc", window, 3)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("known", SHIPPED.values(), ids=SHIPPED)
def test_bytes_depend_neither_on_threads_nor_on_what_lies_around_a_weight(
    known: Callable[[], Known | ScaleFreeKnown],
) -> None:
    model, window = known(), states(70_001)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(predictions(model, Cpu(), "fc", window, 3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    whole = model.survey("fc", [window], 0.5, 3)
    part = model.predict("fc", window[:, 333:20_000], whole, 0.5, 3)
    assert torch.equal(part, found[0][:, 333:20_000])


def test_sums_of_products_are_exact_to_double_precision() -> None:
    window = states(200_001)
    found, expected = Cpu().products(window), Eager().products(window)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.equal(found, found.T)


def test_changed_parameters_are_packed_again() -> None:
    known, window = seeded_known(), states(100)
    before = predictions(known, Cpu(), "fc", window, 1)
    with torch.no_grad():
        known.networks["fc"].get_submodule("head").get_parameter("bias").add_(0.1)
    after = predictions(known, Cpu(), "fc", window, 1)
    assert ((after - before) > 0.05).all()
    check(after, reference(known, "fc", window, 1), window)


def test_parameters_changed_behind_the_back_of_autograd_are_packed_again() -> None:
    with torch.inference_mode():
        known = seeded_known()
        window = states(100)
        before = predictions(known, Cpu(), "fc", window, 1)
    known.networks["fc"].get_submodule("head").get_parameter("bias").data.add_(0.1)
    assert ((predictions(known, Cpu(), "fc", window, 1) - before) > 0.05).all()


@pytest.mark.parametrize("name", ["eager", "cpu"])
def test_what_overflows_inside_is_seen_outside(name: str) -> None:
    """Parameters so large that a network's sums become infinite, and their difference NaN."""
    known, window = seeded_known(), states(100)
    with torch.no_grad():
        for parameter in known.networks["fc"].parameters():
            parameter.mul_(1e20)
    assert predictions(known, choose_engine("cpu", name), "fc", window, 1).isnan().any()


def test_both_x86_levels_agree() -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    from known_core.kernels import _x86_64_v3, _x86_64_v4  # type: ignore[attr-defined]

    network = seeded_known().networks["conv"]
    assert isinstance(network, KnownNetwork)
    window = states(1_001)
    found = []
    for extension in (_x86_64_v3, _x86_64_v4):
        parameters, out = pack_chain(network, extension.ROWS), torch.empty(2, 1_001)
        extension.chain(parameters.data_ptr(), window.data_ptr(), out.data_ptr(), 1_001, 1_001, 2)
        found.append(out)
    assert (_x86_64_v3.ROWS, _x86_64_v4.ROWS) == (4, 8)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_a_device_has_its_engine_and_a_name_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNOWN_ENGINE", raising=False)
    assert choose_engine("cpu").name == "cpu"
    assert choose_engine("meta").name == "eager"
    monkeypatch.setenv("KNOWN_ENGINE", "eager")
    assert choose_engine("cpu").name == "eager"
    assert choose_engine("cpu", "cpu").name == "cpu"
    known = load_hypermodel(hypermodel_path("known-v1"))
    assert known.engine.name == "eager"


@pytest.mark.parametrize("name", ["fast", "triton"])
def test_an_engine_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("KNOWN_ENGINE", name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KnownError, match=rf"'{name}'.*\(engine_unavailable\)"):
        choose_engine("cpu")


def test_where_nothing_was_compiled_eager_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("_x86_64_v3", "_x86_64_v4", "_generic"):
        monkeypatch.setitem(sys.modules, f"known_core.kernels.{level}", None)
    cpu._compiled.cache_clear()
    try:
        assert choose_engine("cpu").name == "eager"
        with pytest.raises(KnownError, match=r"'cpu'.*\(engine_unavailable\)"):
            choose_engine("cpu", "cpu")
    finally:
        cpu._compiled.cache_clear()


_TRITON = """
import sys
import torch
from known_core.kernels.triton import Triton
from tests.known_core.test_kernels import *

triton = Triton(torch.device("cpu"))
for known in MODELS.values():
    model = known()
    for kind in KINDS:
        for count in (1, 127, 300):
            window = states(count, seed=count)
            check(predictions(model, triton, kind, window, 3), reference(model, kind, window, 3), window)
known = seeded_known()
for parameter in known.parameters():
    parameter.data.mul_(30)
found = predictions(known, triton, "fc", extreme_states(), 3)
assert torch.isfinite(found).all()
assert ((found - extreme_states()[0]).abs() <= 3 + 1e-6 * extreme_states()[0].abs()).all()
"""


@pytest.mark.slow
def test_triton_interpreted() -> None:
    """The interpreter has to be on before Triton is imported, so this is a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _TRITON], env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


_HOPPER = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from known_core.kernels import triton as kernels

def compiled(function, constants, warps):
    names = function.arg_names
    types = {name: "*fp32" for name in names[:3]} | {name: "i32" for name in names[3:]}
    types |= {name: "constexpr" for name in constants}
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=types, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]

chain = compiled(kernels._chain_step, {"BLOCK": kernels._BLOCK}, 8)
assert re.search(r"mma\\.sync|wgmma", chain), "no tensor-core product"
assert ".local" not in chain.split(".entry")[1].split("{")[0]
compiled(kernels._fan, {"STEPS": 3, "BLOCK": 1024}, 4)
"""


def test_triton_compiles_for_hopper() -> None:
    """Compilation needs no GPU, only Triton's own assembler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _HOPPER], env=environment, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("known", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", ["eager", "triton"])
def test_on_a_gpu(name: str, known: Callable[[], Known | ScaleFreeKnown]) -> None:
    engine = choose_engine("cuda", name)
    model = known()
    for kind in KINDS:
        for count in (1, 127, 100_001):
            window = states(count, seed=count)
            expected = reference(model, kind, window, 3)
            check(predictions(model.to("cuda"), engine, kind, window.to("cuda"), 3).cpu(), expected, window)
            model.to("cpu")
