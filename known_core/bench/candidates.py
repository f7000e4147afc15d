"""One protocol at one pre-training seed: trainings, candidates of every method, and their figures, each kept."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from known_core import baselines
from known_core.bench.data import load_data
from known_core.bench.protocols import NAIVE, SELECTION, Protocol
from known_core.calibration import has_batch_norm, recalibrate
from known_core.checkpoint.writer import save_tensors
from known_core.examples import Examples
from known_core.files import read_json, sha256_bytes, write_json
from known_core.forgetting import FAN_AVERAGED, nested_subsets
from known_core.hypermodel import STATES, HyperModel
from known_core.hypermodels import load_hypermodel
from known_core.networks import classifier
from known_core.nowcast import predict_states
from known_core.stages import Stages
from known_core.training import OnStep, default_device, fine_tune

State = dict[str, Tensor]
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


class Run:
    """One protocol at one pre-training seed: its weights, trajectories, candidates and their figures."""

    def __init__(self, bench: Bench, protocol: Protocol, seed: int) -> None:
        self._bench, self._protocol, self._seed = bench, protocol, seed
        self._data = load_data(bench.folder, protocol, bench.paths.get(protocol.data), seed)
        self._stages = Stages(bench.folder, shared=True)
        self._device = default_device()
        self._candidates: dict[tuple[str, str], tuple[State, str]] = {}

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
        on_step: OnStep = lambda step, total, loss: None, average_last: float = 0.0,
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

            def on_step(step: int, total: int, loss: float) -> None:
                ema.update_parameters(model)
                if step > total / 2:
                    swa.update_parameters(model)

            rate = protocol.forgetting_learning_rate
            self._train(model, self._d0(), epochs, rate, 1, "constant", on_step=on_step)
            return {"longer": longer, "swa": _weights(swa.module), "ema": _weights(ema.module)}

        return self._keep("longer", self._forgetting(), work)

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

    def candidate(self, method: str, variant: str) -> tuple[State, str]:
        """A candidate with batch-norm statistics of D_0, and the hash of its bytes."""
        if (method, variant) not in self._candidates:
            self._candidates[method, variant] = self._make_candidate(method, variant)
        return self._candidates[method, variant]

    def _make_candidate(self, method: str, variant: str) -> tuple[State, str]:
        state = self.methods()[method][variant]()
        model = self._model(state)
        if has_batch_norm(model):
            recalibrate(model.to(self._device), self._pixels(self._d0()))
            state = _weights(model)
        digest = [(name, sha256_bytes(state[name].contiguous().numpy().tobytes())) for name in sorted(state)]
        return state, sha256_bytes(repr(digest).encode())

    def _pixels(self, data: Examples) -> Iterator[Tensor]:
        return (batch["pixel_values"].to(self._device) for batch in data.batches(_BATCH))

    def measure(self, what: str, method: str, variant: str, **settings: Any) -> Any:
        """One figure or list of figures of a candidate, from the cache or measured: "finetune", "probe" or "own"."""
        state, digest = self.candidate(method, variant)
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
