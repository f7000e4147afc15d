"""Feature extraction: encoders without a head under a given or a fitted one, which stays as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from known_core import inspection, pipeline
from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import FolderSource
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.models.features import FeatureNetwork, fit_head
from known_core.sample_data import ImageArrays, write_imagefolder
from known_core.spec import JobSpec
from known_core.tasks.feature_extraction import FeatureExtraction
from tests.known_core.tasks import tiny
from tests.known_core.tasks.test_jobs import QUICK, moved, run_job, some_ids

TASK = FeatureExtraction()


@pytest.fixture(autouse=True)
def _hypermodel(hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))


def save_mpnet(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.MPNetConfig(vocab_size=len(tiny.save_wordpiece(folder)), **tiny.BERT)
    transformers.MPNetModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["given", "fitted"])
def test_text_encoder(tmp_path: Path, form: str) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertModel")
    if form == "given":
        torch.manual_seed(0)
        save_file({"weight": torch.randn(2, 8), "bias": torch.zeros(2)}, model / "head.safetensors")
    candidate, report = run_job(tmp_path, model=model, dataset=tiny.texts_with_label(tmp_path / "data.parquet"))
    assert (report["task"], report["metric"]) == ("feature-extraction", "accuracy")
    assert report["inputs"]["head"].startswith(form)
    assert moved(model / "model.safetensors", candidate / "model.safetensors")
    assert (candidate / "head.safetensors").is_file() == (form == "given")
    network: Any = transformers.AutoModel.from_pretrained(candidate)
    assert network(some_ids(candidate)).last_hidden_state.shape[2] == 8


@pytest.mark.slow
def test_mpnet(tmp_path: Path) -> None:
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    assert run_job(tmp_path, model=save_mpnet(tmp_path / "model"), dataset=data)[1]["task"] == TASK.name


def test_image_encoder_with_other_classes_downstream(digits: ImageArrays, tmp_path: Path) -> None:
    model = tiny.save_vit(tmp_path / "model", "ViTModel")
    write_imagefolder(tmp_path / "data.zip", digits.of_classes([0, 1, 2]).take(np.arange(120)))
    write_imagefolder(tmp_path / "downstream.zip", digits.of_classes([5, 6, 7, 8]).take(np.arange(80)))
    candidate, report = run_job(
        tmp_path, model=model, dataset=tmp_path / "data.zip", downstream=tmp_path / "downstream.zip"
    )
    assert report["task"] == "feature-extraction"
    head = load_file(next((tmp_path / "job" / "work").glob("head-*")) / "head.safetensors")
    assert head["weight"].shape == (3, 8)
    network: Any = transformers.AutoModel.from_pretrained(candidate)
    assert network(pixel_values=torch.zeros(1, 3, 8, 8)).pooler_output.shape == (1, 8)


def test_a_job_that_goes_on_keeps_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted again on a GPU, it would be another in the last bits, and so would be what is measured after."""
    spec = JobSpec(
        **QUICK, model=tiny.save_bert(tmp_path / "model", "BertModel"),
        dataset=tiny.texts_with_label(tmp_path / "data.parquet"),
    )  # fmt: skip

    def stop(event: dict[str, Any]) -> None:
        if event.get("phase") == "forgetting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(spec, tmp_path / "job", stop)
    monkeypatch.setattr(FeatureExtraction, "fit", None)  # calling it would raise
    report = read_json(pipeline.run(spec, tmp_path / "job", lambda event: None) / "report.json")
    assert report["inputs"]["head"].startswith("fitted")


def test_only_the_encoder_is_trained_and_saved(tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "model", "BertModel")
    network = FeatureNetwork(read_json(folder / "config.json"))
    network.take_head({"weight": torch.ones(2, 8)})
    checkpoint = Checkpoint(folder)
    network.check(checkpoint.shapes)
    model = network.load(checkpoint)
    assert not any(name.startswith("head") for name, p in model.named_parameters() if p.requires_grad)
    new = network.load_with_new_head(checkpoint, 5, 1)
    assert new.head.weight.requires_grad
    assert torch.equal(new.head.weight, network.load_with_new_head(checkpoint, 5, 1).head.weight)
    assert not torch.equal(new.head.weight, network.load_with_new_head(checkpoint, 5, 2).head.weight)
    (tmp_path / "out").mkdir()
    network.save(model, tmp_path / "out", checkpoint)
    assert moved(folder / "model.safetensors", tmp_path / "out" / "model.safetensors") == set()


def test_texts_are_pooled_over_their_own_tokens(tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "model", "BertModel")
    model = FeatureNetwork(read_json(folder / "config.json")).load_bare(Checkpoint(folder)).eval()
    ids, padded = torch.tensor([[2, 9, 3]]), torch.tensor([[2, 9, 3, 0, 0]])
    with torch.no_grad():
        alone = model.features(input_ids=ids, attention_mask=torch.ones_like(ids))
        among = model.features(input_ids=padded, attention_mask=torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(alone, among)
    torch.testing.assert_close(alone, model.network(ids)["last_hidden_state"].mean(1))


def test_a_fitted_head_is_that_of_scikit_learn(digits: ImageArrays) -> None:
    """To 1 % of probability: the same model with the same penalty on standardised features."""
    features = digits.images.reshape(len(digits.images), -1)[:300] / 255.0
    labels = digits.labels[:300]
    inputs = torch.tensor(features, dtype=torch.float32)
    head = fit_head(inputs, torch.tensor(labels), 10)
    again = fit_head(inputs, torch.tensor(labels), 10)
    assert all(torch.equal(head[name], again[name]) for name in head)
    scale = np.maximum(features.std(0, ddof=1), 1e-6)
    standard = (features - features.mean(0)) / scale
    reference = LogisticRegression(C=1.0, max_iter=1000).fit(standard, labels)
    ours = (inputs @ head["weight"].T + head["bias"]).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(standard), atol=0.01)


@pytest.mark.parametrize(("head", "code"), [
    ({"weight": torch.ones(2, 9)}, "tensors_mismatch"),
    ({"weight": torch.ones(1, 8)}, "tensors_mismatch"),
    ({"weight": torch.ones(8)}, "tensors_mismatch"),
    ({"bias": torch.ones(2)}, "tensors_mismatch"),
    ({"weight": torch.ones(2, 8), "bias": torch.ones(3)}, "tensors_mismatch"),
    ({"weight": torch.ones(2, 8), "more": torch.ones(3)}, "tensors_mismatch"),
    ({"weight": torch.full((2, 8), torch.nan)}, "nonfinite_weights"),
    ({"weight": torch.ones(3, 8)}, "labels_mismatch"),
], ids=lambda value: value if isinstance(value, str) else str({n: [*t.shape] for n, t in value.items()}))  # fmt: skip
def test_heads_that_are_refused(tmp_path: Path, head: dict[str, torch.Tensor], code: str) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertModel")
    save_file(head, model / "head.safetensors")
    data = tiny.texts_with_label(tmp_path / "data.parquet")
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        inspection.inspect(JobSpec(model=model, dataset=data))


def test_a_damaged_head(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertModel")
    (model / "head.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(KnownError) as caught:
        inspection.inspect(JobSpec(model=model, dataset=tiny.texts_with_label(tmp_path / "data.parquet")))
    assert caught.value.pointer == "/model"


@pytest.mark.parametrize(("config", "code"), [
    ({"model_type": "t5", "architectures": ["T5Model"]}, "unsupported_architecture"),
    ({"model_type": "clip", "architectures": ["CLIPModel"]}, "unsupported_architecture"),
    ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]}, "unsupported_architecture"),
    ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "unsupported_architecture"),
    ({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": -1}, "config_invalid"),
    ({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 10**6}, "model_too_large"),
], ids=str)  # fmt: skip
def test_encoders_that_are_refused(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    folder = tiny.save_bert(tmp_path / "model", "BertModel")
    with pytest.raises(KnownError) as caught:
        FeatureNetwork(config).check(Checkpoint(folder).shapes)
    assert caught.value.code == code


def test_the_modality_decides_what_is_read(tmp_path: Path) -> None:
    text, image = tiny.save_bert(tmp_path / "bert", "BertModel"), tiny.save_vit(tmp_path / "vit", "ViTModel")
    for name, folder in (("text", text), ("image", image)):
        network = TASK.network(read_json(folder / "config.json"))
        assert TASK.roles(network)[0].name == name
        TASK.processor(network, FolderSource(folder), None)
