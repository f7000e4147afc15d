"""Model families on tiny real checkpoints: names, values and heads kept; hostile configs refused before allocation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import FolderSource
from known_core.errors import KnownError
from known_core.inputs import infer_task
from known_core.models.base import Network
from known_core.models.opening import open_network
from known_core.models.processors import image_preprocessor
from known_core.tasks import TASKS
from tests.known_core.tasks import tiny


@dataclass
class Given:
    """A checkpoint as a user gives it."""

    task: str
    folder: Path
    config: dict[str, Any] | None = None
    base: Path | None = None

    def open(self) -> tuple[Network, Checkpoint]:
        base = None if self.base is None else FolderSource(self.base)
        network = open_network(TASKS[self.task].network, FolderSource(self.folder), self.config, base, self.base)
        return network, Checkpoint(self.folder)

    def check(self) -> None:
        network, checkpoint = self.open()
        network.check(checkpoint.shapes)

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        name = "model" if self.base is None else "adapter_model"
        return load_file(self.folder / f"{name}.safetensors")


def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As gpt2 is stored: without the prefix, and with the mask of its attention."""
    mask = {"h.0.attn.bias": torch.tril(torch.ones(1, 1, 40, 40))}
    return {**{name.removeprefix("transformer."): value for name, value in tensors.items()}, **mask}


def twice(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}


def squeezenet(folder: Path) -> Given:
    folder.mkdir()
    return Given("image-classification", folder, tiny.save_torchvision(folder / "model.safetensors", "squeezenet1_1"))


def lora_classifier(folder: Path, **options: Any) -> Given:
    base = tiny.save_bert(folder / "base", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    adapter = tiny.save_adapter(folder / "adapter", base, "BertForSequenceClassification", "SEQ_CLS", **options)
    return Given("text-classification", adapter, base=base)


def lora_with_its_own_head(folder: Path) -> Given:
    """Three labels on a base that was pre-trained for something else."""
    base = tiny.save_legacy_bert(folder / "base")
    config = (base / "config.json").read_text()
    tiny.set_config(base, num_labels=3)
    adapter = tiny.save_adapter(folder / "adapter", base, "BertForSequenceClassification", "SEQ_CLS")
    (base / "config.json").write_text(config)
    return Given("text-classification", adapter, base=base)


def lora_decoder(folder: Path) -> Given:
    base = tiny.save_gpt2(folder / "base")
    adapter = tiny.save_adapter(folder / "adapter", base, "GPT2LMHeadModel", "CAUSAL_LM", fan_in_fan_out=True)
    return Given("causal-lm", adapter, base=base)


def refusal(given: Given) -> KnownError:
    with pytest.raises(KnownError) as caught:
        given.check()
    return caught.value


IMAGES, TEXTS, WORDS = "image-classification", "text-classification", "token-classification"
MADE: dict[str, Callable[[Path], Given]] = {
    "timm-resnet": lambda folder: Given(IMAGES, tiny.save_timm(folder, "test_efficientnet")),
    "timm-vit": lambda folder: Given(IMAGES, tiny.save_timm(folder, "test_vit", img_size=32)),
    "torchvision": squeezenet,
    "bert-classifier": lambda folder: Given(TEXTS, tiny.save_bert(folder, "BertForSequenceClassification")),
    "gpt2-classifier": lambda folder: Given(TEXTS, tiny.save_gpt2(folder, "GPT2ForSequenceClassification")),
    "bert-tagger": lambda folder: Given(WORDS, tiny.save_bert(folder, "BertForTokenClassification")),
    "bert-masked": lambda folder: Given("masked-lm", tiny.save_bert(folder, "BertForMaskedLM")),
    "bert-legacy": lambda folder: Given("masked-lm", tiny.save_legacy_bert(folder)),
    "gpt2": lambda folder: Given("causal-lm", tiny.save_gpt2(folder)),
    "gpt2-tied-twice": lambda folder: Given("causal-lm", tiny.rewrite(tiny.save_gpt2(folder), twice)),
    "gpt2-bare": lambda folder: Given("causal-lm", tiny.rewrite(tiny.save_gpt2(folder), bare)),
    "lora-classifier": lora_classifier,
    "lora-dora": lambda folder: lora_classifier(folder, use_dora=True, use_rslora=True, bias="lora_only"),
    "lora-own-head": lora_with_its_own_head,
    "lora-decoder": lora_decoder,
}
CARRIED = {  # what no parameter of the network is
    "bert-legacy": {"bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
                    "cls.seq_relationship.weight", "cls.seq_relationship.bias"},
    "gpt2-bare": {"h.0.attn.bias"},
}  # fmt: skip


@pytest.fixture(params=MADE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def given(family: str, tmp_path: Path) -> Given:
    return MADE[family](tmp_path / "given")


def test_load_and_save_keep_every_name_dtype_and_value(given: Given, family: str, tmp_path: Path) -> None:
    network, checkpoint = given.open()
    network.check(checkpoint.shapes)
    model = network.load(checkpoint)
    (tmp_path / "same").mkdir()
    network.save(model, tmp_path / "same", checkpoint)
    same = load_file(tmp_path / "same" / "model.safetensors")
    assert same.keys() == given.stored.keys()
    for name, tensor in given.stored.items():
        assert same[name].dtype == tensor.dtype
        assert torch.equal(same[name], tensor), name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(1)
    (tmp_path / "moved").mkdir()
    network.save(model, tmp_path / "moved", checkpoint)
    moved = load_file(tmp_path / "moved" / "model.safetensors")
    still = {name for name, tensor in given.stored.items() if torch.equal(moved[name], tensor)}
    buffers = {name for name in moved if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert still == CARRIED.get(family, set()) | buffers


@pytest.mark.parametrize("family", [
    "timm-resnet", "timm-vit", "torchvision", "bert-classifier", "gpt2-classifier", "bert-tagger", "lora-classifier",
    "lora-dora", "lora-own-head",
], indirect=True)  # fmt: skip
def test_new_heads_are_seeded_and_all_else_kept(given: Given) -> None:
    network, checkpoint = given.open()
    base = network.load(checkpoint).state_dict()
    first, again, other = (network.load_with_new_head(checkpoint, 7, seed).state_dict() for seed in (1, 1, 2))
    head = {name for name in base if first[name].shape != base[name].shape}
    assert head
    assert all(torch.equal(first[name], again[name]) for name in base)
    assert all(torch.equal(first[name], tensor) for name, tensor in base.items() if name not in head)
    assert any(not torch.equal(first[name], other[name]) for name in head)
    assert all(first[name].shape[0] == 7 for name in head)


def test_the_task_is_that_of_the_config(given: Given) -> None:
    base = None if given.base is None else FolderSource(given.base)
    assert infer_task(FolderSource(given.folder), base, given.config) == given.task


def test_the_base_of_an_adapter_stays_as_it_is(tmp_path: Path) -> None:
    given = lora_classifier(tmp_path)
    network, checkpoint = given.open()
    model = network.load(checkpoint)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    plain: Any = transformers.BertForSequenceClassification.from_pretrained(given.base)
    ours = peft.PeftModel.from_pretrained(plain, str(given.folder)).eval()
    ids = torch.tensor([[2, 9, 10, 3]])
    with torch.inference_mode():
        assert torch.equal(model.eval()(input_ids=ids)["logits"], ours(input_ids=ids).logits)


def test_an_adapter_s_head_says_how_many_labels(tmp_path: Path) -> None:
    given = lora_with_its_own_head(tmp_path)
    assert given.open()[0].num_labels == 3
    given.config = json.loads(json.dumps(tiny.labels(("a", "b", "c"))))
    network, checkpoint = given.open()
    network.check(checkpoint.shapes)
    assert network.label_names == ["a", "b", "c"]


@pytest.mark.parametrize("family", ["timm-resnet", "timm-vit"], indirect=True)
def test_timm_folders_say_how_images_enter(given: Given) -> None:
    network, checkpoint = given.open()
    assert network.label_names == ["0", "1", "2", "3", "4"]
    model = timm.create_model(f"local-dir:{given.folder}", pretrained=True).eval()
    image = Image.effect_noise((20, 30), 60)
    pixels = image_preprocessor(network, FolderSource(given.folder))([image])
    assert pixels.shape == (1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network.load(checkpoint).eval()(pixels)["logits"], model(pixels))


def test_torchvision_s_own_preprocessing(tmp_path: Path) -> None:
    config = {"library": "torchvision", "architecture": "squeezenet1_1", "num_classes": 1000}
    network = TASKS[IMAGES].network(config)
    image = Image.effect_noise((300, 400), 60).convert("RGB")
    ours = image_preprocessor(network, FolderSource(tmp_path))([image])
    theirs = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(image)
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=0)


BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 60, **tiny.BERT}


@pytest.mark.parametrize(("task", "config", "code"), [
    (IMAGES, {"library": "timm", "architecture": "no_such_net", "num_classes": 5}, "unsupported_architecture"),
    (IMAGES, {"library": "timm", "architecture": "hf-hub:a/b", "num_classes": 5}, "unsupported_architecture"),
    (IMAGES, {"library": "timm", "architecture": "test_vit"}, "config_invalid"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 10**9}, "config_invalid"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5, "model_args": [1]}, "config_invalid"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5, "model_args": {"x": 1}},
     "config_invalid"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5,
              "model_args": {"checkpoint_path": "/etc/passwd"}}, "config_field_refused"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5, "model_args": {"depth": 10**9}},
     "model_too_large"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5, "model_args": {"depth": 10**5}},
     "model_too_large"),
    (IMAGES, {"library": "timm", "architecture": "test_vit", "num_classes": 5, "label_names": ["a"]},
     "config_invalid"),
    (IMAGES, {"library": "torchvision", "architecture": "no_such_net", "num_classes": 5}, "unsupported_architecture"),
    (IMAGES, {"library": "torchvision", "architecture": "fcn_resnet50", "num_classes": 5}, "unsupported_architecture"),
    (IMAGES, {"library": "torchvision", "architecture": "resnet18", "num_classes": "5"}, "config_invalid"),
    (IMAGES, {"library": "torchvision", "architecture": "resnet18", "num_classes": 5, "weights": "x"},
     "config_invalid"),
    (IMAGES, {"library": "evil", "architecture": "resnet18", "num_classes": 5}, "config_invalid"),
    (IMAGES, BERT, "unsupported_architecture"),
    (TEXTS, {**BERT, "architectures": ["BertForMaskedLM"]}, "unsupported_architecture"),
    (TEXTS, {**BERT, "hidden_size": 7}, "config_invalid"),
    (TEXTS, {**BERT, "hidden_size": 10**9}, "model_too_large"),
    (TEXTS, {**BERT, "num_hidden_layers": 10**6}, "model_too_large"),
    (TEXTS, {**BERT, "id2label": {"1": "a"}}, "config_invalid"),
    (TEXTS, {**BERT, "attn_implementation": "someone/kernel"}, "config_field_refused"),
    (TEXTS, {**BERT, "auto_map": {"AutoModel": "x.py"}}, "remote_code_refused"),
    (TEXTS, {**BERT, "num_hidden_layers": 2}, "tensors_mismatch"),
    (WORDS, BERT, "unsupported_architecture"),
    ("causal-lm", BERT, "unsupported_architecture"),
    ("masked-lm", BERT, "unsupported_architecture"),
], ids=str)  # fmt: skip
def test_configs_that_are_refused(tmp_path: Path, task: str, config: dict[str, Any], code: str) -> None:
    """With the weights of a BERT beside them: nothing is built from them."""
    made = tiny.save_bert(tmp_path / "bert", "BertForSequenceClassification")
    (made / "config.json").unlink()
    assert refusal(Given(task, made, config)).code == code


@pytest.mark.parametrize(("change", "code"), [
    ({"peft_type": "IA3"}, "unsupported_architecture"),
    ({"peft_type": None}, "unsupported_architecture"),
    ({"megatron_config": {"a": 1}}, "config_field_refused"),
    ({"layer_replication": [[0, 1]]}, "config_field_refused"),
    ({"use_qalora": True}, "config_field_refused"),
    ({"something_new": [1]}, "config_field_refused"),
    ({"init_lora_weights": "pissa"}, "config_field_refused"),
    ({"init_lora_weights": ["gaussian"]}, "config_field_refused"),
    ({"r": 10**9}, "config_invalid"),
    ({"r": -1}, "config_invalid"),
    ({"r": 5}, "tensors_mismatch"),
    ({"target_modules": ["no_such_module"]}, "config_invalid"),
    ({"target_modules": ["query"]}, "tensors_mismatch"),
    ({"target_modules": ["query", "value", "key"]}, "tensors_mismatch"),
], ids=str)  # fmt: skip
def test_adapters_that_are_refused(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    given = lora_classifier(tmp_path)
    path = given.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(given).code == code


def test_bases_that_are_not_the_adapter_s(tmp_path: Path) -> None:
    given = lora_classifier(tmp_path)
    given.base = None
    with pytest.raises(KnownError, match=r"adapter of .*\(base_missing\)"):
        given.open()
    given.base = tiny.save_bert(tmp_path / "wide", "BertForSequenceClassification", hidden_size=16)
    assert refusal(given).code == "tensors_mismatch"
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    given.base = tmp_path / "base"
    error = refusal(given)
    assert "missing bert.pooler.dense.bias" in error.message
    assert error.pointer == "/model/base"


@pytest.mark.parametrize(("config", "named", "code"), [
    ({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering", "task_unclear"),
    ({"model_type": "bert"}, "bert", "task_unclear"),
    ({"architectures": "BertForMaskedLM"}, "None", "unsupported_architecture"),
    ({}, "None", "unsupported_architecture"),
], ids=str)  # fmt: skip
def test_configs_that_name_no_task(tmp_path: Path, config: dict[str, Any], named: str, code: str) -> None:
    with pytest.raises(KnownError, match=named) as caught:
        infer_task(FolderSource(tmp_path), None, config)
    assert caught.value.code == code
