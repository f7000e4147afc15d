"""One small whole job for every family and task; the candidate is loaded by the plain library and run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file

from known_core import inspection, pipeline
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.manifest import verify_manifest
from known_core.sample_data import ImageArrays, write_imagefolder
from known_core.spec import DataSettings, EvaluationSettings, ForgettingSettings, JobSpec, NowcastSettings
from tests.known_core.tasks import tiny

QUICK: dict[str, Any] = {
    "forgetting": ForgettingSettings(epochs_per_stage=1, max_length=24),
    "nowcast": NowcastSettings(recurrences=1, controls=()),
    "evaluation": EvaluationSettings(
        seeds=3, probe_examples=10, probe_epochs=1, probe_learning_rates=(1e-3,), holdout=0.3
    ),
}


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


@pytest.fixture(scope="session")
def images(digits: ImageArrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 0-4 in folders, with a test split."""
    path = tmp_path_factory.mktemp("images") / "data.zip"
    source = digits.of_classes([0, 1, 2, 3, 4])
    write_imagefolder(path, source.take(np.arange(100)), source.take(np.arange(100, 140)))
    return path


def run_job(folder: Path, **spec: Any) -> tuple[Path, dict[str, Any]]:
    """Where the candidate x2 is, and the report."""
    artifacts = pipeline.run(JobSpec(**QUICK | spec), folder / "job", lambda event: None)
    verify_manifest(artifacts)
    report = read_json(artifacts / "report.json")
    assert set(report["transfer"]) == {"unchanged", "x2"}
    assert report["metric"] in (artifacts / "report.md").read_text()
    return artifacts / "x2", report


def moved(before: Path, after: Path) -> set[str]:
    """The tensors that differ; names and dtypes are the same."""
    first, second = load_file(before), load_file(after)
    assert list(first) == list(second)
    assert all(first[name].dtype == second[name].dtype for name in first)
    return {name for name in first if not torch.equal(first[name], second[name])}


def some_ids(folder: Path) -> torch.Tensor:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    ids: torch.Tensor = tokenizer(tiny.sentences()[0][0], return_tensors="pt")["input_ids"]
    return ids


def test_timm_images(images: Path, tmp_path: Path) -> None:
    model = tiny.save_timm(tmp_path / "model", "test_efficientnet")
    candidate, report = run_job(tmp_path, model=model, dataset=images)
    assert (report["task"], report["metric"], report["library"]) == ("image-classification", "accuracy", "timm")
    assert moved(model / "model.safetensors", candidate / "model.safetensors")
    network = timm.create_model(f"local-dir:{candidate}", pretrained=True).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_torchvision_images(images: Path, tmp_path: Path) -> None:
    config = tiny.save_torchvision(tmp_path / "weights.safetensors", "squeezenet1_1")
    candidate, report = run_job(tmp_path, model=tmp_path / "weights.safetensors", config=config, dataset=images)
    assert (report["task"], report["library"]) == ("image-classification", "torchvision")
    network = torchvision.models.get_model("squeezenet1_1", num_classes=5)
    network.load_state_dict(load_file(candidate / "model.safetensors"))
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_transformers_images(digits: ImageArrays, tmp_path: Path) -> None:
    """Without a test split: what is held out is scored first, and lies with what is trained on."""
    write_imagefolder(tmp_path / "data.zip", digits.of_classes([0, 1, 2, 3, 4]).take(np.arange(140)))
    tiny.save_vit(tmp_path / "model")
    candidate, report = run_job(tmp_path, model=tmp_path / "model", dataset=tmp_path / "data.zip")
    assert (report["task"], report["library"]) == ("image-classification", "transformers")
    network: Any = transformers.AutoModelForImageClassification.from_pretrained(candidate)
    assert network(pixel_values=torch.zeros(1, 3, 8, 8)).logits.shape == (1, 5)


def test_adapted_images(images: Path, tmp_path: Path) -> None:
    base = tiny.save_vit(tmp_path / "base")
    adapter = tiny.save_adapter(
        tmp_path / "adapter", base, "ViTForImageClassification", None, target_modules=["q_proj", "v_proj"],
        modules_to_save=["classifier"],
    )  # fmt: skip
    candidate, report = run_job(tmp_path, model=adapter, base=base, dataset=images)
    assert (report["task"], report["library"]) == ("image-classification", "peft")
    assert (candidate / "adapter_model.safetensors").is_file()


def test_text_classifier(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    candidate, report = run_job(tmp_path, model=model, dataset=data)
    assert (report["task"], report["metric"]) == ("text-classification", "accuracy")
    network: Any = transformers.AutoModelForSequenceClassification.from_pretrained(candidate)
    assert network(some_ids(candidate)).logits.shape == (1, 2)
    assert network.config.id2label == dict(enumerate(tiny.CLASSES))


def test_text_classifier_on_a_decoder(tmp_path: Path) -> None:
    """Neither its tokenizer nor its config names a padding token."""
    model = tiny.save_gpt2(tmp_path / "model", "GPT2ForSequenceClassification", **tiny.labels(tiny.CLASSES))
    _, report = run_job(tmp_path, model=model, dataset=tiny.texts_with_label(tmp_path / "data.parquet"))
    assert report["task"] == "text-classification"


def test_pairs_of_texts_with_other_labels_downstream(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification", **tiny.labels(("no", "yes")))
    texts = [text for text, _ in tiny.sentences()]
    for name, labels in (("data.jsonl", ("yes", "no")), ("downstream.jsonl", ("a", "b", "c"))):
        rows = [
            {"sentence1": texts[index], "sentence2": texts[index + 1], "label": labels[index % len(labels)]}
            for index in range(90)
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    _, report = run_job(
        tmp_path, model=model, dataset=tmp_path / "data.jsonl", downstream=tmp_path / "downstream.jsonl"
    )
    assert report["inputs"]["dataset"]["columns"] == {
        "text": "sentence1", "text_pair": "sentence2", "label": "label"
    }  # fmt: skip
    assert list(report["inputs"]["downstream"]["train"]) == ["a", "b", "c"]


def test_token_classifier(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForTokenClassification", **tiny.labels(tiny.TAGS))
    data = tiny.words_with_tags(tmp_path / "data.jsonl")
    candidate, report = run_job(tmp_path, model=model, dataset=data, downstream=data)
    assert (report["task"], report["metric"]) == ("token-classification", "token accuracy")
    network: Any = transformers.AutoModelForTokenClassification.from_pretrained(candidate)
    ids = some_ids(candidate)
    assert network(ids).logits.shape == (1, ids.shape[1], 3)


@pytest.mark.parametrize("form", ["once", "twice"])
def test_causal_language_model(tmp_path: Path, form: str) -> None:
    """What is tied stays so, stored once or twice."""
    model = tiny.save_gpt2(tmp_path / "model")
    if form == "twice":
        tiny.rewrite(model, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()})
    candidate, report = run_job(tmp_path, model=model, dataset=tiny.texts_alone(tmp_path / "data.jsonl"))
    assert (report["task"], report["metric"]) == ("causal-lm", "next-token accuracy")
    assert moved(model / "model.safetensors", candidate / "model.safetensors")
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(candidate)
    assert network.lm_head.weight is network.transformer.wte.weight
    assert network.generate(some_ids(candidate), max_new_tokens=2, pad_token_id=0).shape[0] == 1


@pytest.mark.parametrize("form", ["plain", "legacy"])
def test_masked_language_model(tmp_path: Path, form: str) -> None:
    """Also as bert-base-uncased is stored, in half precision: known-v1 leaves what the class does not use as it is."""
    model = tiny.save_bert(tmp_path / "model", "BertForMaskedLM")
    if form == "legacy":
        tiny.save_legacy_bert(model)
        tiny.rewrite(model, lambda tensors: {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
        })  # fmt: skip
    settings = NowcastSettings(hypermodel="known-v1", recurrences=1, controls=())
    data = tiny.texts_alone(tmp_path / "data.jsonl")
    candidate, report = run_job(tmp_path, model=model, dataset=data, nowcast=settings)
    assert (report["task"], report["metric"]) == ("masked-lm", "masked-token accuracy")
    changed = moved(model / "model.safetensors", candidate / "model.safetensors")
    assert changed
    assert not any("seq_relationship" in name or "pooler" in name for name in changed)
    network: Any = transformers.AutoModelForMaskedLM.from_pretrained(candidate)
    assert network(some_ids(candidate)).logits.shape[0] == 1


def test_adapter_of_a_text_classifier(tmp_path: Path) -> None:
    base = tiny.save_bert(tmp_path / "base", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    adapter = tiny.save_adapter(tmp_path / "adapter", base, "BertForSequenceClassification", "SEQ_CLS")
    before = load_file(base / "model.safetensors")
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    candidate, report = run_job(tmp_path, model=adapter, base=base, dataset=data)
    assert report["settings"]["forgetting"]["learning_rate"] == 2e-4
    assert moved(adapter / "adapter_model.safetensors", candidate / "adapter_model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(base / "model.safetensors").items())
    plain: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    network = peft.PeftModel.from_pretrained(plain, str(candidate))
    assert network(some_ids(base)).logits.shape == (1, 2)


def test_adapter_of_a_causal_language_model(tmp_path: Path) -> None:
    base = tiny.save_gpt2(tmp_path / "base")
    adapter = tiny.save_adapter(tmp_path / "adapter", base, "GPT2LMHeadModel", "CAUSAL_LM", fan_in_fan_out=True)
    data = tiny.texts_alone(tmp_path / "data.jsonl")
    candidate, report = run_job(tmp_path, model=adapter, base=base, dataset=data)
    assert report["library"] == "peft"
    assert all("lora_" in name for name in moved(adapter / "adapter_model.safetensors",
                                                 candidate / "adapter_model.safetensors"))  # fmt: skip
    network = peft.AutoPeftModelForCausalLM.from_pretrained(str(candidate))  # the base is at the path it names
    assert network(some_ids(base)).logits.shape[0] == 1


@pytest.mark.parametrize("column", ["tags are short", "labels are unknown"])
def test_token_data_that_is_refused(tmp_path: Path, column: str) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForTokenClassification", **tiny.labels(tiny.TAGS))
    tags = ["O"] if column == "tags are short" else ["O", "ELSEWHERE"]
    row = json.dumps({"tokens": ["a", "word"], "ner_tags": tags}) + "\n"
    other = json.dumps({"tokens": ["a", "word"], "ner_tags": ["WHO", "WHAT"]}) + "\n"
    (tmp_path / "data.jsonl").write_text((other + row) * 40)
    code = "dataset_unusable" if column == "tags are short" else "labels_mismatch"
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        run_job(tmp_path, model=model, dataset=tmp_path / "data.jsonl")


def test_a_task_that_is_named(tmp_path: Path) -> None:
    """The checkpoint's config says another; the data is of the named one."""
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification")
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    for task, code in (("token-classification", "unsupported_architecture"), ("chess", "task_unknown")):
        with pytest.raises(KnownError, match=rf"\({code}\)"):
            inspection.inspect(JobSpec(model=model, dataset=data, task=task))
    with pytest.raises(KnownError, match=r"\(dataset_missing\)"):
        inspection.inspect(JobSpec(model=model))
    assert inspection.inspect(JobSpec(model=model, dataset=data, data=DataSettings()))["task"] == "text-classification"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["token-classification", "masked-lm", "semantic-segmentation"])
def test_adapters_of_other_tasks(digits: ImageArrays, tmp_path: Path, task: str) -> None:
    if task == "semantic-segmentation":
        base = tiny.save_segmenter(tmp_path / "base", "segformer")
        data = tiny.masked_images(digits, tmp_path / "data.parquet")
        kind, options = "SegformerForSemanticSegmentation", {"target_modules": ["q_proj", "query"]}
        options["modules_to_save"] = ["decode_head"]
    elif task == "masked-lm":
        base = tiny.save_bert(tmp_path / "base", "BertForMaskedLM")
        data = tiny.texts_alone(tmp_path / "data.jsonl")
        kind, options = "BertForMaskedLM", {"target_modules": ["query", "value"]}
    else:
        base = tiny.save_bert(tmp_path / "base", "BertForTokenClassification", **tiny.labels(tiny.TAGS))
        data = tiny.words_with_tags(tmp_path / "data.jsonl")
        kind, options = "BertForTokenClassification", {}
    adapter = tiny.save_adapter(
        tmp_path / "adapter", base, kind, "TOKEN_CLS" if task.startswith("token") else None, **options
    )
    candidate, report = run_job(tmp_path, model=adapter, base=base, dataset=data)
    assert (report["task"], report["library"]) == (task, "peft")
    assert moved(adapter / "adapter_model.safetensors", candidate / "adapter_model.safetensors")
