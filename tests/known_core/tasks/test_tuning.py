"""Settings left open: the task's own, and what fits the device; the effective batch stays the one asked for."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

from known_core import pipeline, tuning
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.examples import image_examples
from known_core.inputs import lay_out
from known_core.models.base import LabelsOnTop
from known_core.models.registered import SmallCNN
from known_core.sample_data import ImageArrays
from known_core.spec import ForgettingSettings, JobSpec, NowcastSettings
from known_core.tasks import TASKS
from known_core.tasks.opened import OpenTask
from known_core.training import enable_checkpointing, fine_tune
from tests.known_core.tasks import tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenTask, Checkpoint, JobSpec]:
    """A LoRA adapter of a text classifier, and its data."""
    folder = tmp_path_factory.mktemp("opened")
    base = tiny.save_bert(folder / "base", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    adapter = tiny.save_adapter(folder / "adapter", base, "BertForSequenceClassification", "SEQ_CLS")
    spec = JobSpec(model=adapter, base=base, dataset=tiny.texts_with_label(folder / "data.parquet"))
    lay_out(spec, folder / "inputs")
    task = OpenTask(TASKS["text-classification"], spec, folder / "inputs", folder / "cache")
    return task, Checkpoint(folder / "inputs" / "model"), spec


def test_what_is_left_open_is_the_task_s_own(opened: tuple[OpenTask, Checkpoint, JobSpec]) -> None:
    task, _, spec = opened
    filled = tuning.with_defaults(spec, task, CPU)
    assert filled.forgetting.learning_rate == 2e-4  # an adapter's
    assert filled.forgetting.batch_size == 32
    assert filled.forgetting.precision == "float32"
    assert filled.evaluation.probe_learning_rates == (2e-5, 1e-4)
    asked = spec.model_copy(update={"forgetting": ForgettingSettings(learning_rate=1e-3, batch_size=7)})
    kept = tuning.with_defaults(asked, task, CPU)
    assert (kept.forgetting.learning_rate, kept.forgetting.batch_size) == (1e-3, 7)


def test_networks_that_are_no_adapters_have_the_task_s_learning_rate(tiny_spec: JobSpec, tmp_path: Path) -> None:
    lay_out(tiny_spec, tmp_path / "inputs")
    task = OpenTask(TASKS["image-classification"], tiny_spec, tmp_path / "inputs", tmp_path / "cache")
    open_one = tiny_spec.model_copy(update={"forgetting": ForgettingSettings()})
    assert tuning.with_defaults(open_one, task, CPU).forgetting.learning_rate == 1e-4


class Memory:
    """What stands for a GPU's: a trial fits up to so many examples, more of them with checkpointing."""

    def __init__(self, plain: int, checkpointed: int) -> None:
        self.plain, self.checkpointed = plain, checkpointed
        self.trials: list[tuple[int, bool]] = []

    def __repr__(self) -> str:
        return f"{self.plain}, {self.checkpointed}"

    def __call__(self, task: Any, start: Any, micro: int, checkpointing: bool, *others: Any) -> bool:
        self.trials.append((micro, checkpointing))
        return micro <= (self.checkpointed if checkpointing else self.plain)


@pytest.mark.parametrize(("memory", "asked", "found"), [
    (Memory(64, 64), {}, (32, False)),
    (Memory(10, 64), {}, (8, False)),
    (Memory(3, 64), {}, (32, True)),  # an eighth is 4
    (Memory(0, 5), {}, (4, True)),
    (Memory(3, 64), {"gradient_checkpointing": False}, (2, False)),
    (Memory(64, 20), {"gradient_checkpointing": True}, (16, True)),
    (Memory(4, 64), {"batch_size": 12}, (3, False)),
    (Memory(4, 64), {"batch_size": 7}, (3, False)),
    (Memory(0, 0), {"micro_batch_size": 5}, (5, False)),  # asked for: not tried
], ids=str)  # fmt: skip
def test_what_fits_is_found_by_trial(
    opened: tuple[OpenTask, Checkpoint, JobSpec],
    monkeypatch: pytest.MonkeyPatch,
    memory: Memory,
    asked: dict[str, Any],
    found: tuple[int, bool],
) -> None:
    monkeypatch.setattr(tuning, "_fits", memory)
    settings = ForgettingSettings(**{"batch_size": 32, **asked})
    result = tuning.fit_to_memory(opened[0], opened[1], settings, GPU)
    assert (result["micro_batch_size"], result["gradient_checkpointing"]) == found
    assert len(set(memory.trials)) == len(memory.trials)


def test_not_even_one_example_fits(
    opened: tuple[OpenTask, Checkpoint, JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_fits", memory := Memory(0, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a small GPU")
    with pytest.raises(KnownError, match=r"a small GPU \(out_of_memory\)"):
        tuning.fit_to_memory(opened[0], opened[1], ForgettingSettings(batch_size=4), GPU)
    assert memory.trials == [(4, False), (2, False), (1, False), (4, True), (2, True), (1, True)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trial_is_a_training_step(
    opened: tuple[OpenTask, Checkpoint, JobSpec], monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """On the CPU here; an error that says memory ran out is an answer, any other one is not."""
    task, start, _ = opened
    assert tuning._fits(task, start, 4, checkpointing, "float32", CPU)
    longest = max(len(task.d0.items[index]["input_ids"]) for index in range(len(task.d0.labels)))
    assert len(tuning._longest(task, 1)[0]["input_ids"]) == longest
    assert len(tuning._longest(task, 1000)) == 1000
    for error, said in ((torch.OutOfMemoryError("CUDA out of memory."), None), (ValueError("else"), "else")):
        monkeypatch.setattr(task, "collate", lambda error=error, **options: lambda items: _raise(error))
        if said is None:
            assert not tuning._fits(task, start, 4, checkpointing, "float32", CPU)
        else:
            with pytest.raises(ValueError, match=said):
                tuning._fits(task, start, 4, checkpointing, "float32", CPU)


def _raise(error: Exception) -> Any:
    raise error


def cnn() -> nn.Module:
    return SmallCNN(3, 1, 8, width=2, norm="none")


def wrapped_cnn() -> nn.Module:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cnn = cnn()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.cnn(pixels)["logits"]  # type: ignore[no-any-return]

    return LabelsOnTop(Logits())


def vit() -> nn.Module:
    """Its forward takes any keyword and hands the number of labels to its loss."""
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **tiny.labels(("a", "b", "c")),
    )  # fmt: skip
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model


@pytest.mark.parametrize("build", [cnn, wrapped_cnn, vit])
def test_accumulated_gradients_make_the_step_of_the_whole_batch(build: Any, digits: ImageArrays) -> None:
    """Of parts that are not equal, too: 8 examples by threes, and the last 3 of the epoch by twos."""
    data = image_examples(digits.of_classes([0, 1, 2]).take(torch.arange(11).numpy()), 8)
    after, losses = [], []
    for micro, checkpointing in ((None, False), (4, False), (3, False), (2, False), (1, False), (4, True)):
        torch.manual_seed(0)
        model = build()
        losses.append(fine_tune(
            model, data, epochs=1, learning_rate=1e-2, batch_size=8, seed=0, device=CPU, optimizer="sgd",
            micro_batch_size=micro, gradient_checkpointing=checkpointing,
        ))  # fmt: skip
        after.append(model.state_dict())
    for loss, state in zip(losses[1:], after[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, after[0][name], atol=1e-6, rtol=1e-5)


def test_checkpointing_is_turned_on_where_a_network_can(tmp_path: Path) -> None:
    able: Any = vit()
    enable_checkpointing(able)
    assert able.is_activation_checkpointing
    for architecture, can in (("test_vit", True), ("dla46x_c", False)):
        network = timm.create_model(architecture, num_classes=3)
        enable_checkpointing(LabelsOnTop(network))
        assert getattr(network, "grad_checkpointing", False) == can
    enable_checkpointing(transformers.MobileNetV2Model(transformers.MobileNetV2Config()))
    enable_checkpointing(cnn())


def test_segformer_ignores_the_number_of_labels(digits: ImageArrays, tmp_path: Path) -> None:
    """Its forward takes any keyword and its loss is a mean: Trainer would not divide it by the micro batches."""
    folder = tiny.save_segmenter(tmp_path / "model", "segformer")
    after = []
    items = [
        {"pixel_values": torch.rand(3, 16, 16), "labels": torch.randint(0, 3, (16, 16))} for _ in range(8)
    ]  # fmt: skip
    for micro in (8, 4):
        model: Any = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
        model.decode_head.batch_norm.eval()
        model.decode_head.batch_norm.train = lambda mode=True: None
        model.decode_head.dropout.p = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if type(module).__name__ == "SegformerDropPath":
                module.drop_prob = 0.0
        fine_tune(
            model, items, epochs=1, learning_rate=1e-2, batch_size=8, seed=0, device=CPU, optimizer="sgd",  # type: ignore[arg-type]
            micro_batch_size=micro,
        )  # fmt: skip
        after.append(model.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(tensor, after[1][name], atol=1e-5, rtol=1e-4)


def test_memory_that_runs_out_later_is_said_so(
    tiny_spec: JobSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(OpenTask, "score", lambda *arguments: _raise(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(KnownError, match=r"\(out_of_memory\)"):
        pipeline.run(tiny_spec, tmp_path / "job", lambda event: None)


def test_settings_found_are_in_the_report(
    tiny_spec: JobSpec, hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    forgetting = ForgettingSettings(learning_rate=1e-3, batch_size=32, micro_batch_size=9)
    quick = {"forgetting": forgetting, "nowcast": NowcastSettings(recurrences=1, controls=())}
    artifacts = pipeline.run(tiny_spec.model_copy(update=quick), tmp_path / "job", lambda event: None)
    assert '"micro_batch_size": 9' in (artifacts / "report.json").read_text()
