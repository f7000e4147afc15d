"""Fit hyper-models on collected trajectories, and say how well they predict trajectories they never saw."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from known_core.errors import KnownError
from known_core.files import canonical_json, sha256_bytes, write_json
from known_core.hypermodel import STATES, Known
from known_core.kinds import DTYPE_NAMES, Kind
from known_core.metatrain.collect import LARGER, Recipe, held_out, read_recipe, trajectories
from known_core.metatrain.collect import STATES as TRAJECTORY_STATES
from known_core.scale_free import ScaleFreeKnown, scaled, statistics

KindOf = Callable[[str, dict[str, tuple[int, ...]], str], Kind | None]
Progress = Callable[[str, int, int], None]  # kind, steps done, steps in all

_BATCH = 8192  # weights a step
_GROUP = 256  # weights of one tensor in a scale-free batch
_L1_ON_KERNELS = 1e-6  # paper, section 4.2
_SHRINKS = np.linspace(0.6, 1.1, 101)


@dataclass(frozen=True)
class Window:
    """Weights of one tensor: their five states, and what more data made of them.

    ``states`` (5, n) float32, Θ_0 first, then ever less data; ``target`` (n,) float32. ``features``, ``unit`` and
    ``size`` are :func:`~known_core.scale_free.statistics` of the whole tensor.
    """

    kind: Kind
    recipe: Recipe
    states: Tensor
    target: Tensor
    features: Tensor
    unit: Tensor
    size: Tensor

    @property
    def scale(self) -> Tensor:
        """How far the target lies from Θ_0, the mean over the weights."""
        return (self.target - self.states[0]).abs().mean().clamp(min=1e-12)


def windows(path: Path, kind_of: KindOf) -> Iterator[tuple[Kind, Tensor, Tensor, int]]:
    """Kind, states, target and step of each window of a shard: a chain's slide along it, a fan's differ in target."""
    recipe = read_recipe(path)
    with safe_open(path, framework="pt") as file:
        names = [key.removeprefix("start.") for key in file.keys() if key.startswith("start.")]  # noqa: SIM118
        shapes = {name: tuple(file.get_slice(f"start.{name}").get_shape()) for name in names}
        for name in names:
            start = file.get_tensor(f"start.{name}")
            kind = kind_of(name, shapes, DTYPE_NAMES.get(start.dtype, "other"))
            if kind is None:
                continue
            theta = start.float().reshape(-1)
            states = torch.stack([
                theta + file.get_tensor(f"{index}.{name}").float().reshape(-1)
                for index in range(TRAJECTORY_STATES[recipe.design])
            ])  # fmt: skip
            if recipe.design == "chain":
                for target in range(len(states) - STATES):
                    yield kind, states[target + 1 : target + 1 + STATES], states[target], 1
            else:
                base = torch.cat([theta[None], states[LARGER : LARGER + STATES - 1]])
                for step in range(1, LARGER + 1):
                    yield kind, base, states[LARGER - step], step


def load_windows(shards: Sequence[Path], kind_of: KindOf, per_kind: int, seed: int) -> list[Window]:
    """At most ``per_kind`` weights of each kind from each trajectory, shared out over its tensors."""
    generator = torch.Generator().manual_seed(seed)
    loaded = []
    for shard in shards:
        recipe = read_recipe(shard)
        of_shard = list(windows(shard, kind_of))
        counts = {kind: sum(1 for window in of_shard if window[0] == kind) for kind in get_args(Kind)}
        for kind, states, target, step in of_shard:
            statistics_of = statistics(states[1:] - states[0], states[0], recipe.rate, step)
            chosen = torch.randperm(len(target), generator=generator)[: max(32, per_kind // counts[kind])]
            loaded.append(Window(kind, recipe, states[:, chosen], target[chosen], *statistics_of))
    return loaded


def fit(
    folder: Path, name: str, out: Path, *, steps: int, per_kind: int, seed: int, leave_out: bool = False,
    on_step: Progress = lambda what, step, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit one network a kind by L1 and write ``out/NAME.safetensors`` with its report ``out/NAME.json``.

    Chains give the paper's KNOWN (section 4.2), fans :class:`~known_core.scale_free.ScaleFreeKnown`.

    Args:
        folder: what :func:`~known_core.metatrain.collect.collect` made, all of one design.
        steps: of Adam, a kind; cosine from 2e-3.
        per_kind: weights a kind from each trajectory.
        leave_out: fit again without each architecture and each data set in turn, and report the skill on those.

    Returns:
        The report: settings, and for each kind, over all and by architecture and data set, the skill on held-out
        trajectories beside that of the best plain shrinkage fitted on the same data (:func:`skills`).

    Raises:
        KnownError: ``too_few_trajectories``, ``designs_mixed``.
    """
    shards = trajectories(folder)
    test, train = [path for path in shards if held_out(path)], [path for path in shards if not held_out(path)]
    if len(train) < 2 or not test:
        raise KnownError(
            "too_few_trajectories",
            f"{folder} has {len(shards)} trajectories, {len(test)} of them held out",
            "Collect at least twenty: known metatrain collect.",
        )
    recipes = [read_recipe(path) for path in shards]
    if len({recipe.design for recipe in recipes}) > 1:
        raise KnownError("designs_mixed", f"{folder} has chains and fans", "Keep each design in a folder of its own.")
    build = ScaleFreeKnown if recipes[0].design == "fan" else Known
    seen = load_windows(train, build().kind_of, per_kind, seed)
    unseen = load_windows(test, build().kind_of, per_kind, seed + 1)
    known = _fitted(build, seen, steps, seed, on_step)
    report: dict[str, Any] = {
        "name": name,
        "design": recipes[0].design,
        "trajectories": len(train),
        "held_out_trajectories": len(test),
        "recipes_sha256": sha256_bytes(canonical_json([vars(recipe) for recipe in recipes])),
        "data": sorted({Path(recipe.data).stem for recipe in recipes}),
        "architectures": sorted({recipe.architecture for recipe in recipes}),
        "settings": {"steps": steps, "per_kind": per_kind, "seed": seed, "batch": _BATCH, "loss": "L1"},
        "kinds": skills(known, seen, unseen),
        "held_out": {},
    }
    for field in ("architecture", "data"):
        for value in sorted({getattr(recipe, field) for recipe in recipes}):
            mine = [window for window in unseen if getattr(window.recipe, field) == value]
            report["held_out"][Path(value).stem] = {"fitted_with_others": skills(known, seen, mine)} if mine else {}
            others = [window for window in seen if getattr(window.recipe, field) != value]
            if leave_out and others:
                its = [window for window in seen + unseen if getattr(window.recipe, field) == value]
                without = _fitted(build, others, steps, seed, lambda kind, *n, v=value: on_step(f"no {v} {kind}", *n))
                report["held_out"][Path(value).stem]["never_seen"] = skills(without, others, its)
    known.metadata = {"name": name, "recipes_sha256": str(report["recipes_sha256"])}
    known.save(out / f"{name}.safetensors")
    write_json(out / f"{name}.json", report)
    return report


def _fitted(
    build: type[Known] | type[ScaleFreeKnown], seen: list[Window], steps: int, seed: int, on_step: Progress
) -> Known | ScaleFreeKnown:
    torch.manual_seed(seed)
    known = build()
    for kind in get_args(Kind):
        of_kind = [window for window in seen if window.kind == kind]
        if not of_kind:
            continue  # as it began: it predicts Θ_0, or nearly so
        if isinstance(known, Known):
            _fit_known(known, kind, of_kind, steps, seed, on_step)
        else:
            _fit_scale_free(known, kind, of_kind, steps, seed, on_step)
    return known.eval()


def _fit_known(known: Known, kind: Kind, seen: list[Window], steps: int, seed: int, on_step: Progress) -> None:
    network = known.networks[kind]
    histories = torch.cat([window.states.flip(0).T for window in seen])  # most forgotten first
    targets = torch.cat([window.target for window in seen])
    kernels = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # start as "predict Θ_0": the residual is small beside the weights
        for parameter in network.get_submodule("head").parameters():
            parameter.mul_(0.01)

    def loss() -> Tensor:
        batch = torch.randint(len(targets), (_BATCH,), generator=generator)
        error: Tensor = (histories[batch, -1] + known.residual(kind, histories[batch]) - targets[batch]).abs().mean()
        return error + _L1_ON_KERNELS * sum((kernel.abs().sum() for kernel in kernels), torch.zeros(()))

    _minimise(network, loss, steps, lambda done: on_step(kind, done, steps))


def _fit_scale_free(
    known: ScaleFreeKnown, kind: Kind, seen: list[Window], steps: int, seed: int, on_step: Progress
) -> None:
    """L1 in units of how far each target lies from Θ_0, so that every trajectory counts alike."""
    generator = torch.Generator().manual_seed(seed)
    network = known.networks[kind]
    features = torch.stack([window.features for window in seen])
    gathered = []
    for window in seen:  # each window's weights, repeated where it has fewer than a group
        pick = torch.arange(max(_GROUP, window.target.numel())) % window.target.numel()
        inputs = scaled(window.states[1:] - window.states[0], window.states[0], window.unit, window.size)
        gathered.append((inputs[pick], ((window.target - window.states[0]) / window.scale)[pick]))
    units = torch.stack([window.unit / window.scale for window in seen])
    weights = torch.from_numpy(_weights(seen))

    def loss() -> Tensor:
        chosen = torch.multinomial(weights, _BATCH // _GROUP, replacement=True, generator=generator).tolist()
        rows = [torch.randint(len(gathered[index][1]), (_GROUP,), generator=generator) for index in chosen]
        inputs = torch.stack([gathered[index][0][row] for index, row in zip(chosen, rows, strict=True)])
        targets = torch.stack([gathered[index][1][row] for index, row in zip(chosen, rows, strict=True)])
        predicted: Tensor = network(features[chosen], inputs) * units[chosen, None]
        return (predicted - targets).abs().mean()

    _minimise(network, loss, steps, lambda done: on_step(kind, done, steps))


def _minimise(network: nn.Module, loss: Callable[[], Tensor], steps: int, on_step: Callable[[int], None]) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1)


def _weights(windows: Sequence[Window]) -> NDArray[np.float64]:
    """Weights that sum to one and give each trajectory the same share, however many tensors it has."""
    counts = Counter(window.recipe.seed for window in windows)
    return np.array([1 / counts[window.recipe.seed] / len(counts) for window in windows])


def skills(known: Known | ScaleFreeKnown, seen: list[Window], unseen: list[Window]) -> dict[str, dict[str, float]]:
    """For each kind, 1 - |error| / |error of predicting Θ_0|, the mean over the unseen trajectories of their windows'.

    Returns:
        ``skill``; ``shrinkage_skill``, that of the factor that does best on the windows ``seen``, and that
        ``shrinkage_factor``; the number of ``windows``.
    """
    found = {}
    for kind in get_args(Kind):
        fitted, tested = ([w for w in part if w.kind == kind] for part in (seen, unseen))
        if not fitted or not tested:
            continue

        shrunk = _weights(fitted) @ np.stack([_shrinkage_skills(window) for window in fitted])
        best = int(shrunk.argmax())
        found[kind] = {
            "skill": float(_weights(tested) @ np.array([_skill(w, _predict(known, w)) for w in tested])),
            "shrinkage_factor": float(_SHRINKS[best]),
            "shrinkage_skill": float(_weights(tested) @ np.stack([_shrinkage_skills(w) for w in tested])[:, best]),
            "windows": len(tested),
        }
    return found


@torch.inference_mode()
def _predict(known: Known | ScaleFreeKnown, window: Window) -> Tensor:
    theta = window.states[0]
    if isinstance(known, Known):
        residual = known.residual(window.kind, window.states.flip(0).T.contiguous())
        return theta + residual
    inputs = scaled(window.states[1:] - theta, theta, window.unit, window.size)
    displacement: Tensor = window.unit * known.networks[window.kind](window.features, inputs)
    return theta + displacement


def _shrinkage_skills(window: Window) -> NDArray[np.float64]:
    """The skill of each of _SHRINKS; (101,)."""
    theta = window.states[0].numpy()
    errors = np.abs(np.multiply.outer(_SHRINKS.astype(np.float32), theta) - window.target.numpy()).mean(1)
    skills_of: NDArray[np.float64] = 1 - errors / float(window.scale)
    return skills_of


def _skill(window: Window, predicted: Tensor) -> float:
    return float(1 - (predicted - window.target).abs().mean() / window.scale)
