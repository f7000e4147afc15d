"""`known bench transfer`: what each method is worth as a start for fine-tuning, beside really having more data.

For each pre-training seed a network is trained on D_0 (naive) and, from the same random weights, on multiples of
the data (the oracles). Θ_0 then forgets, every method makes its candidate from what that left, and each candidate is
probed, fine-tuned on few downstream examples, and measured on D_0's own task. Learning rates, scales and the candidate
that a user would be given are chosen on the seed ``SELECTION``, which never reports.

Every piece of work is kept under a hash of its inputs, so a run goes on where it was interrupted, and a new method
costs only its own evaluations.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from known_core.bench.candidates import Bench, Run
from known_core.bench.protocols import NAIVE, SELECTION, Protocol

Unit = tuple[int, str, tuple[Any, ...]]  # pre-training seed, what, arguments


def _do(bench: Bench, protocol: Protocol, unit: Unit) -> Any:
    """One unit of work, in a process of the pool."""
    seed, what, arguments = unit
    torch.set_num_threads(1)
    run = Run(bench, protocol, seed)
    if what == "pretrained":
        run.pretrained(*arguments)
    elif what == "forgetting":
        run.chain(), run.fan(), run.longer()
    else:
        method, variant, measures = arguments
        return [run.measure(figure, method, variant, **dict(settings)) for figure, settings in measures]
    return None


def measure_protocol(
    bench: Bench,
    protocol: Protocol,
    *,
    workers: int = 1,
    methods: Callable[[str], bool] = lambda name: True,
    on_units: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every method on one protocol.

    Args:
        workers: processes; each computes with one thread.
        methods: which of the methods to measure, by name; ``naive`` and the oracles always are.
        on_units: called with the units of work done and the number known so far.

    Returns:
        For each method: ``variant`` and ``learning_rate`` chosen, ``validation`` one accuracy a selection draw,
        ``finetune`` and ``probe`` as (pre-training seeds, fine-tuning seeds) lists of accuracies, ``own`` and
        ``retuned`` one a pre-training seed.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        counted = _Counted(pool, partial(_do, bench, protocol), on_units)
        seeds = (SELECTION, *protocol.pretraining_seeds)
        multiples = sorted(protocol.multiples, reverse=True)  # the longest first
        counted.run([(seed, "pretrained", (multiple,)) for multiple in (*multiples, 1) for seed in seeds])
        counted.run([(seed, "forgetting", ()) for seed in seeds])
        variants = {
            name: list(of_method)
            for name, of_method in Run(bench, protocol, SELECTION).methods().items()
            if name == NAIVE or name.startswith("oracle") or methods(name)
        }
        draws = range(SELECTION, SELECTION + protocol.choosing_draws)
        tried: list[Unit] = [
            (SELECTION, "measure", (name, variant, tuple(_finetuning(rate, draw) for draw in draws)))
            for name, of_method in variants.items()
            for variant in of_method
            for rate in protocol.finetuning_learning_rates
        ]
        best: dict[str, float] = {}
        chosen: dict[str, tuple[str, float]] = {}
        for (_, _, (name, variant, measures)), accuracies in zip(tried, counted.run(tried), strict=True):
            if float(np.mean(accuracies)) > best.get(name, -1.0):
                best[name] = float(np.mean(accuracies))
                chosen[name] = (variant, dict(measures[0][1])["learning_rate"])
        draws = range(SELECTION, SELECTION + protocol.selection_draws)
        selecting: list[Unit] = [
            (SELECTION, "measure", (name, variant, tuple(_finetuning(rate, draw) for draw in draws)))
            for name, (variant, rate) in chosen.items()
        ]
        validation = dict(zip(chosen, counted.run(selecting), strict=True))
        units: list[Unit] = [
            (
                seed,
                "measure",
                (
                    name,
                    variant,
                    (("own", ()), ("probe", ()), *(_finetuning(rate, tuning) for tuning in protocol.finetuning_seeds)),
                ),
            )
            for seed in protocol.pretraining_seeds
            for name, (variant, rate) in chosen.items()
        ]
        found = counted.run(units)
        figures = {(seed, arguments[0]): figure for (seed, _, arguments), figure in zip(units, found, strict=True)}
    rows = {}
    for name, (variant, rate) in chosen.items():
        mine = [figures[seed, name] for seed in protocol.pretraining_seeds]
        rows[name] = {
            "variant": variant,
            "learning_rate": rate,
            "validation": validation[name],
            "own": [own["as_predicted"] for own, *_ in mine],
            "retuned": [own["retuned"] for own, *_ in mine],
            "probe": [probe for _, probe, *_ in mine],
            "finetune": [finetuned for _, _, *finetuned in mine],
        }
    return rows


def _finetuning(learning_rate: float, seed: int) -> tuple[str, tuple[tuple[str, float], ...]]:
    return "finetune", (("learning_rate", learning_rate), ("seed", seed))


class _Counted:
    """Runs units on a pool, in order of need, counting what is done."""

    def __init__(
        self, pool: ProcessPoolExecutor, work: Callable[[Unit], Any], on_units: Callable[[int, int], None]
    ) -> None:
        self._pool, self._work, self._on_units = pool, work, on_units
        self._done = self._total = 0

    def run(self, units: Iterable[Unit]) -> list[Any]:
        """Results in the order of ``units``. The first failure cancels what has not begun."""
        futures: list[Future[Any]] = [self._pool.submit(self._work, unit) for unit in units]
        self._total += len(futures)
        try:
            for future in as_completed(futures):
                future.result()
                self._done += 1
                self._on_units(self._done, self._total)
        except BaseException:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
