"""`known bench transfer`: what each method is worth as a start for fine-tuning, beside really having more data.

For each pre-training seed a network is trained on D_0 (naive) and, from the same random weights, on 2, 4 and 8 times
the data (the oracles). Θ_0 then forgets, every method makes its candidate from what that left, and each candidate is
probed, fine-tuned on few downstream examples, and measured on D_0's own task. Learning rates, scales and the candidate
that a user would be given are chosen on the seed ``SELECTION``, which never reports.

Every piece of work is kept under a hash of its inputs, so a run goes on where it was interrupted, and a new method
costs only its own evaluations.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from known_core import baselines
from known_core.bench.protocols import SELECTION, Protocol
from known_core.calibration import has_batch_norm, recalibrate
from known_core.checkpoint.writer import save_tensors
from known_core.errors import KnownError
from known_core.examples import Examples, image_examples, text_examples
from known_core.files import read_json, sha256_bytes, sha256_file, write_json
from known_core.forgetting import FAN_AVERAGED, nested_subsets
from known_core.hypermodel import STATES, HyperModel
from known_core.hypermodels import load_hypermodel
from known_core.networks import build_network, build_text_network, classifier
from known_core.nowcast import predict_states
from known_core.sample_data import ImageArrays, load_sample
from known_core.sample_text import TextArrays, load_text
from known_core.stages import Stages
from known_core.training import default_device, fine_tune

State = dict[str, Tensor]
NAIVE = "naive"
_VERSION = 1  # raise it when a change of code changes a figure: cached work is then done again
_SCALES = (0.25, 0.5, 1.0)
_RIDGES = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation of the linear probe
_BATCH = 500


@dataclass(frozen=True)
class Bench:
    """What a run works with; a worker process gets a copy.

    Args:
        folder: where finished work is kept.
        paths: where to find data sets that are not installed: the imagefolder zip of "cifar10".
        hypermodels: by the name the tables show, files that :func:`~known_core.hypermodels.load_hypermodel` reads.
    """

    folder: Path
    paths: Mapping[str, Path] = field(default_factory=dict)
    hypermodels: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A protocol's examples: the source classes in the order of a pre-training seed, and the downstream ones."""

    source: Examples
    source_test: Examples
    pool: Examples
    test: Examples
    classes: int
    downstream_classes: int
    build: Callable[[int], nn.Module]  # a network with this many outputs


# --- data and networks -------------------------------------------------------------------------------------------


@cache
def _arrays(bench_folder: Path, data: str, path: Path | None) -> ImageArrays | TextArrays:
    """Decoding a zip takes longer than training on it, so its pixels are kept."""
    if data == "wordnet":
        return load_text(data)
    if path is None:
        return load_sample(data)

    def decode(out: Path) -> None:
        arrays = load_sample(str(path))
        np.save(out / "images.npy", arrays.images)
        np.save(out / "labels.npy", arrays.labels)
        write_json(out / "classes.json", arrays.classes)

    folder = Stages(bench_folder).run("pixels", {"zip": sha256_file(path)}, decode)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return ImageArrays(images, np.load(folder / "labels.npy"), tuple(read_json(folder / "classes.json")))


@cache
def load_data(bench_folder: Path, protocol: Protocol, path: Path | None, seed: int) -> Data:
    """A protocol's data for one pre-training seed. The downstream split is the same for all, where its classes are
    others than the source's.

    Raises:
        KnownError: ``dataset_unusable`` when there is less than the protocol needs; and what loading raises.
    """
    arrays = _arrays(bench_folder, protocol.data, path)
    source, downstream = (_of_classes(arrays, classes) for classes in (protocol.source, protocol.downstream))
    order = np.random.default_rng([seed, 3]).permutation(len(source.labels))
    wanted = protocol.examples * max((1, *protocol.multiples)) + protocol.test_examples
    if protocol.downstream == protocol.source:  # D_0's own task learned again, on unseen examples
        downstream = source.take(order[wanted:])
    pool = protocol.probe_examples + protocol.shots + protocol.test_examples
    for what, have, need in (("source", len(source.labels), wanted), ("downstream", len(downstream.labels), pool)):
        if have < need:
            raise KnownError(
                "dataset_unusable",
                f"{protocol.name} wants {need} examples of its {what} classes; {protocol.data} has {have}",
                "Give the whole data set.",
            )
    split = np.random.default_rng(4).permutation(len(downstream.labels))
    test = protocol.test_examples
    make = partial(_examples, protocol=protocol)
    return Data(
        source=make(source.take(order[test:][: wanted - test])),
        source_test=make(source.take(order[:test])),
        pool=make(downstream.take(split[test:])),
        test=make(downstream.take(split[:test])),
        classes=len(source.classes),
        downstream_classes=len(downstream.classes),
        build=partial(_network, arrays, protocol),
    )


def _of_classes(arrays: ImageArrays | TextArrays, classes: tuple[int, ...]) -> Any:
    return arrays.of_classes(list(classes))


def _examples(arrays: ImageArrays | TextArrays, protocol: Protocol) -> Examples:
    if isinstance(arrays, TextArrays):
        return text_examples(arrays)
    return image_examples(arrays, protocol.size, augment=protocol.augment)


def _network(arrays: ImageArrays | TextArrays, protocol: Protocol, classes: int) -> nn.Module:
    if isinstance(arrays, TextArrays):
        return build_text_network(arrays.vocabulary, arrays.tokens.shape[1], classes, protocol.width)
    channels = 1 if arrays.images.ndim == 3 else 3
    model = build_network(protocol.architecture, classes, channels, protocol.size, protocol.width)
    channels_last: nn.Module = model.to(memory_format=torch.channels_last)
    return channels_last


# --- pre-training and forgetting ---------------------------------------------------------------------------------


class Run:
    """One protocol at one pre-training seed: its weights, trajectories, candidates and their figures."""

    def __init__(self, bench: Bench, protocol: Protocol, seed: int) -> None:
        self._bench, self._protocol, self._seed = bench, protocol, seed
        self._data = load_data(bench.folder, protocol, bench.paths.get(protocol.data), seed)
        self._stages = Stages(bench.folder)
        self._device = default_device()

    def _keep(self, name: str, inputs: Mapping[str, Any], work: Callable[[], Mapping[str, State]]) -> dict[str, State]:
        """State dicts by name, from the cache or from ``work``."""

        def write(out: Path) -> None:
            for state_name, state in work().items():
                save_tensors(out / f"{state_name}.safetensors", {k: v.contiguous() for k, v in state.items()}, {})

        folder = self._stages.run(name, {"version": _VERSION, "seed": self._seed, **inputs}, write)
        return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}

    def pretrained(self, multiple: int, steps: int = 1) -> State:
        """The network trained on ``multiple`` times D_0; 1 is Θ_0. All start from the same random weights.

        ``steps`` multiplies the epochs: D_0 with the steps that a larger set has in as many epochs.
        """

        def work() -> dict[str, State]:
            torch.manual_seed(self._seed)
            model = self._data.build(self._data.classes)
            epochs = steps * self._protocol.epochs
            self._train(model, self._d0(multiple), epochs, self._protocol.learning_rate, 0, "cosine")
            return {"weights": _weights(model)}

        inputs = self._pretraining(multiple) | ({"steps": steps} if steps > 1 else {})
        return self._keep("pretrained", inputs, work)["weights"]

    def _pretraining(self, multiple: int) -> dict[str, Any]:
        fields = ("data", "source", "architecture", "examples", "size", "width", "epochs", "learning_rate",
                  "batch_size", "augment", "test_examples")  # fmt: skip
        settings = {name: getattr(self._protocol, name) for name in fields}
        return {"pretraining": settings, "multiple": multiple}

    def _forgetting(self) -> dict[str, Any]:
        fields = ("rate", "epochs_per_stage", "forgetting_learning_rate")
        return self._pretraining(1) | {"forgetting": {name: getattr(self._protocol, name) for name in fields}}

    def _d0(self, multiple: int = 1) -> Examples:
        return self._data.source.take(np.arange(self._protocol.examples * multiple))

    def _train(
        self, model: nn.Module, data: Examples, epochs: int, learning_rate: float, stage: int, schedule: str,
        on_step: Callable[[int, int], None] = lambda step, total: None, average_last: float = 0.0,
    ) -> None:  # fmt: skip
        fine_tune(
            model, data, epochs=epochs, learning_rate=learning_rate, batch_size=self._protocol.batch_size,
            seed=self._seed + stage, device=self._device, schedule=schedule, on_step=on_step,
            average_last=average_last,
        )  # fmt: skip

    def _model(self, state: State) -> nn.Module:
        model = self._data.build(self._data.classes)
        model.load_state_dict(state)
        return model

    def chain(self) -> list[State]:
        """Θ_0 .. Θ_4, each trained from the one before it on a smaller subset (the paper's trajectory)."""

        def work() -> dict[str, State]:
            d0, states = self._d0(), {}
            model = self._model(self.pretrained(1))
            for stage, subset in enumerate(self._subsets()[1:STATES], start=1):
                self._train(
                    model, d0.take(subset), self._protocol.epochs_per_stage, self._protocol.forgetting_learning_rate,
                    stage, "constant",
                )  # fmt: skip
                states[f"state-{stage}"] = _weights(model)
            return states

        return [self.pretrained(1), *self._keep("chain", self._forgetting(), work).values()]

    def fan(self) -> list[State]:
        """Θ_0, then Φ_0 .. Φ_3: each trained from Θ_0 on D_0 .. D_3 and averaged (what known-v1 reads)."""

        def work() -> dict[str, State]:
            d0, theta = self._d0(), self.pretrained(1)
            states = {}
            for stage, subset in enumerate(self._subsets()[: STATES - 1]):
                model = self._model(theta)
                self._train(
                    model, d0.take(subset), self._protocol.epochs_per_stage, self._protocol.forgetting_learning_rate,
                    stage + 1, "constant", average_last=FAN_AVERAGED,
                )  # fmt: skip
                states[f"state-{stage}"] = _weights(model)
            return states

        return [self.pretrained(1), *self._keep("fan", self._forgetting(), work).values()]

    def _subsets(self) -> list[Any]:
        labels = self._d0().labels.numpy()
        return list(nested_subsets(labels, self._protocol.rate, STATES, self._seed))

    def longer(self) -> dict[str, State]:
        """Θ_0 trained on, on all of D_0, for the epochs that the fan costs: what the same compute buys without KNOW.

        "longer" ends with a cosine; "swa" is the mean of the second half at a constant rate, "ema" an exponential one.
        """

        def work() -> dict[str, State]:
            protocol = self._protocol
            cost = sum(protocol.rate**stage for stage in range(STATES - 1))
            epochs = max(1, round(protocol.epochs_per_stage * cost))
            model = self._model(self.pretrained(1))
            self._train(model, self._d0(), epochs, protocol.forgetting_learning_rate, 1, "cosine")
            longer = _weights(model)
            model = self._model(self.pretrained(1))
            swa, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))  # type: ignore[no-untyped-call]

            def on_step(step: int, total: int) -> None:
                ema.update_parameters(model)
                if step > total / 2:
                    swa.update_parameters(model)

            rate = protocol.forgetting_learning_rate
            self._train(model, self._d0(), epochs, rate, 1, "constant", on_step=on_step)
            return {"longer": longer, "swa": _weights(swa.module), "ema": _weights(ema.module)}

        return self._keep("longer", self._forgetting(), work)

    # --- candidates ----------------------------------------------------------------------------------------------

    def methods(self) -> dict[str, dict[str, Callable[[], State]]]:
        """Every method's variants. A method with several has its scale chosen on the selection seed."""
        theta = partial(self.pretrained, 1)
        chain, fan_states = cache(self.chain), cache(self.fan)

        def one(make: Callable[[], State]) -> dict[str, Callable[[], State]]:
            return {"": make}

        def scales(make: Callable[[float], State]) -> dict[str, Callable[[], State]]:
            return {f"{scale:g}": partial(make, scale) for scale in _SCALES}

        methods: dict[str, dict[str, Callable[[], State]]] = {NAIVE: one(theta)}
        for multiple in self._protocol.multiples:
            methods[f"oracle x{multiple}"] = one(partial(self.pretrained, multiple))
        most = max((1, *self._protocol.multiples))
        methods[f"oracle x{most} steps, D_0 alone"] = one(partial(self.pretrained, 1, most))
        for factor in (0.9, 0.8, 0.5):
            methods[f"shrink {factor:g}"] = one(partial(lambda f: baselines.shrink(theta(), f), factor))
        methods |= {
            "shrink and perturb": one(lambda: baselines.shrink_and_perturb(theta(), 0.8, 0.1, self._seed)),
            "linear fit": scales(lambda scale: baselines.linear_fit(chain(), scale)),
            "log fit": scales(lambda scale: baselines.log_fit(chain(), scale)),
            "task vector": scales(lambda scale: baselines.task_vector(theta(), chain()[-1], scale)),
            "singular task vector": scales(
                lambda scale: baselines.singular_task_vector(theta(), chain()[-1], scale, 0.25)
            ),
            "mean of the chain": one(lambda: baselines.mean(chain())),
            "fan on D_0 alone": one(lambda: fan_states()[1]),
            "mean of the fan": one(lambda: baselines.mean(fan_states())),
        }
        for name in ("longer", "swa", "ema"):
            methods[name] = one(partial(lambda key: self.longer()[key], name))
        for name, path in self._bench.hypermodels.items():
            known = load_hypermodel(path)
            predict = cache(partial(self._predictions, known))
            for step in range(3):
                label = f"{name} x{self._protocol.rate ** -(step + 1):g}"
                methods[label] = one(partial(lambda p, s: p()[s], predict, step))
                methods[f"shrink matched to {label}"] = one(
                    partial(lambda p, s: baselines.matched_shrink(theta(), p()[s]), predict, step)
                )
        return methods

    def _predictions(self, known: HyperModel) -> list[State]:
        return predict_states(known, self.fan() if known.design == "fan" else self.chain(), self._protocol.rate, 3)

    @cache  # noqa: B019 (a Run lives for one unit of work)
    def _candidate(self, method: str, variant: str) -> tuple[State, str]:
        """A candidate with batch-norm statistics of D_0, and the hash of its bytes."""
        state = self.methods()[method][variant]()
        model = self._model(state)
        if has_batch_norm(model):
            recalibrate(model.to(self._device), self._pixels(self._d0()))
            state = _weights(model)
        digest = [(name, sha256_bytes(state[name].contiguous().numpy().tobytes())) for name in sorted(state)]
        return state, sha256_bytes(repr(digest).encode())

    def _pixels(self, data: Examples) -> Iterator[Tensor]:
        return (batch["pixel_values"].to(self._device) for batch in data.batches(_BATCH))

    # --- figures -------------------------------------------------------------------------------------------------

    def measure(self, what: str, method: str, variant: str, **settings: Any) -> Any:
        """One figure or list of figures of a candidate, from the cache or measured: "finetune", "probe" or "own"."""
        state, digest = self._candidate(method, variant)
        works: dict[str, Callable[..., Any]] = {"finetune": self._finetune, "probe": self._probe, "own": self._own}
        fields = {"finetune": ("shots", "finetuning_epochs"), "probe": ("probe_examples", "finetuning_seeds"),
                  "own": ("batch_size", "forgetting_learning_rate")}[what]  # fmt: skip
        inputs = self._pretraining(1) | {
            "version": _VERSION, "candidate": digest, "downstream": self._protocol.downstream, "settings": settings,
            "fields": {name: getattr(self._protocol, name) for name in fields},
        }  # fmt: skip

        def write(out: Path) -> None:
            write_json(out / "figure.json", works[what](state, **settings))

        return read_json(self._stages.run(what, inputs, write) / "figure.json")

    def _finetune(self, state: State, learning_rate: float, seed: int) -> float:
        """Downstream accuracy after fine-tuning on few examples; on the validation part for draws that choose."""
        order = np.random.default_rng([seed, 5]).permutation(len(self._data.pool))
        shots = self._protocol.shots
        model = self._with_new_head(state, seed)
        fine_tune(
            model, self._data.pool.take(order[:shots]), epochs=self._protocol.finetuning_epochs,
            learning_rate=learning_rate, batch_size=32, seed=seed, device=self._device, schedule="cosine",
        )  # fmt: skip
        validation = self._data.pool.take(order[shots:][: self._protocol.test_examples])
        return self._accuracy(model, validation if seed >= SELECTION else self._data.test)

    def _with_new_head(self, state: State, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = self._data.build(self._data.downstream_classes)
        head = _name_of(model, classifier(model))
        own = model.state_dict()
        body = {name: own[name] if name.startswith(f"{head}.") else tensor for name, tensor in state.items()}
        model.load_state_dict(body)
        return model

    def _probe(self, state: State) -> list[float]:
        """Downstream accuracy of a logistic regression on frozen features, one figure a fine-tuning seed."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = self._model(state)
        pool = self._data.pool.take(np.arange(min(len(self._data.pool), 2 * self._protocol.probe_examples)))
        features, test = self._features(model, pool), self._features(model, self._data.test)
        labels, test_labels = pool.labels.numpy(), self._data.test.labels.numpy()
        count = self._protocol.probe_examples
        figures = []
        for seed in self._protocol.finetuning_seeds:
            order = np.random.default_rng([seed, 6]).permutation(len(labels))
            train, validation = order[:count], order[count:]
            fitted = [
                make_pipeline(StandardScaler(), LogisticRegression(C=ridge, max_iter=2000)).fit(
                    features[train], labels[train]
                )
                for ridge in _RIDGES
            ]
            best = max(fitted, key=lambda probe: float(probe.score(features[validation], labels[validation])))
            figures.append(float(best.score(test, test_labels)))
        return figures

    def _own(self, state: State) -> dict[str, float]:
        """Accuracy on D_0's own task, as predicted and after one epoch on D_0."""
        model = self._model(state)
        predicted = self._accuracy(model, self._data.source_test)
        self._train(model, self._d0(), 1, self._protocol.forgetting_learning_rate / 2, 9, "cosine")
        return {"as_predicted": predicted, "retuned": self._accuracy(model, self._data.source_test)}

    @torch.inference_mode()
    def _accuracy(self, model: nn.Module, data: Examples) -> float:
        model.to(self._device).eval()
        logits = [model(**self._to_device(batch))["logits"].cpu() for batch in data.batches(_BATCH)]
        return float((torch.cat(logits).argmax(1) == data.labels).float().mean())

    @torch.inference_mode()
    def _features(self, model: nn.Module, data: Examples) -> Any:
        """What the classifier reads, (N, features) float32 NumPy."""
        model.to(self._device).eval()
        read: list[Tensor] = []
        hook = classifier(model).register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].cpu()))
        for batch in data.batches(_BATCH):
            model(**self._to_device(batch))
        hook.remove()
        return torch.cat(read).flatten(1).numpy()

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.to(self._device) for name, values in batch.items()}


def _weights(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[wanted]


# --- the whole run -----------------------------------------------------------------------------------------------

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
