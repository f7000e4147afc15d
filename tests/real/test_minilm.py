"""all-MiniLM-L6-v2, alone and under a classifier: jobs on WordNet's definitions, and back into transformers.

`make test-slow` installs the package that carries the weights.
"""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from known_core import pipeline
from known_core.files import read_json
from known_core.manifest import verify_manifest
from known_core.sample_text import FOLDER
from known_core.spec import EvaluationSettings, ForgettingSettings, JobSpec, NowcastSettings

LEXNAMES = {5: "animal", 6: "artifact", 8: "body", 13: "food", 18: "person", 20: "plant"}  # lexnames(5WN)
TRAIN, TEST = 50, 30  # definitions of each class
CANDIDATES = ("x2", "x4", "continued")
_PACKAGE = find_spec("all_minilm_l6_v2")
PACKAGED = Path(str(_PACKAGE and _PACKAGE.origin)).with_name("model.zip")  # the checkpoint folder, in a zip
Texts = list[tuple[str, str]]  # with the class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACKAGED.is_file(), reason="the extra `real` is not installed: make test-slow"),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="WordNet is not installed: apt-get install wordnet-base"),
]


def minilm(folder: Path) -> Path:
    """The checkpoint folder."""
    with zipfile.ZipFile(PACKAGED) as archive:
        archive.extractall(folder)
    return folder


def definitions() -> tuple[Texts, Texts]:
    """Nouns' definitions, as many of each class, and others to test on."""
    of_class: dict[str, list[str]] = {name: [] for name in LEXNAMES.values()}
    for line in (FOLDER / "data.noun").read_text("utf-8").splitlines():
        if not line.startswith(" "):  # the licence
            synset, gloss = line.split("|", 1)
            name = LEXNAMES.get(int(synset.split()[1]))
            if name is not None:
                of_class[name].append(gloss.split(";")[0].strip())
    order = np.random.default_rng(0)
    chosen = {name: order.permutation(sorted(set(texts)))[: TRAIN + TEST] for name, texts in of_class.items()}
    return (
        [(str(text), name) for name, texts in chosen.items() for text in texts[:TRAIN]],
        [(str(text), name) for name, texts in chosen.items() for text in texts[TRAIN:]],
    )


def encode(folder: Path, texts: Texts) -> tuple[Tensor, Tensor]:
    """The pooler's output, and sentence-transformers' embedding: the mean of the tokens, of length 1."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([text for text, _ in texts], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(**batch)
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    return out.pooler_output, torch.nn.functional.normalize(mean, dim=1)


def classifier(backbone: Path, train: Texts, folder: Path) -> None:
    """What a user has: a BertForSequenceClassification of these weights with a linear classifier on the pooler."""
    from sklearn.linear_model import LogisticRegression

    labels = list(LEXNAMES.values())
    features = encode(backbone, train)[0].numpy()
    fitted = LogisticRegression(max_iter=1000).fit(features, [labels.index(name) for _, name in train])
    folder.mkdir()
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(backbone / "model.safetensors").items()}
    tensors["classifier.weight"] = torch.from_numpy(fitted.coef_).float().contiguous()
    tensors["classifier.bias"] = torch.from_numpy(fitted.intercept_).float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(backbone / "config.json") | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((backbone / name).read_bytes())


def accuracy(folder: Path, texts: Texts) -> float:
    """Of the candidate, as transformers itself runs it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        batch = tokenizer([text for text, _ in texts], padding=True, truncation=True, return_tensors="pt")
        predicted = model(**batch).logits.argmax(1).tolist()
    return float(
        np.mean([model.config.id2label[index] == name for index, (_, name) in zip(predicted, texts, strict=True)])
    )


def nearest(embeddings: Tensor, count: int) -> Tensor:
    """The nearest other texts of each, (N, count)."""
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-1).topk(count).indices


def run(model: Path, train: Texts, test: Texts, folder: Path) -> Path:
    """The artifacts of a short job."""
    (folder / "data").mkdir()
    for split, texts in (("train", train), ("test", test)):
        lines = [json.dumps({"text": text, "label": name}) for text, name in texts]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    spec = JobSpec(
        model=model,
        dataset=folder / "data",
        forgetting=ForgettingSettings(learning_rate=2e-5, batch_size=32),
        nowcast=NowcastSettings(recurrences=2, controls=("continued",)),
        evaluation=EvaluationSettings(seeds=3, probe_examples=30, probe_epochs=1, probe_learning_rates=(1e-4,)),
    )
    artifacts = pipeline.run(spec, folder / "job", lambda event: None)
    verify_manifest(artifacts)
    return artifacts


def check_weights(artifacts: Path, given: Path, prefix: str) -> None:
    """Every candidate has the tensors that were given, and predicts those that training moves."""
    before = load_file(given / "model.safetensors")
    for name in ("unchanged", *CANDIDATES):
        after = load_file(artifacts / name / "model.safetensors")
        assert {key: (value.shape, value.dtype) for key, value in after.items()} == {
            key: (value.shape, value.dtype) for key, value in before.items()
        }
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert f"{prefix}embeddings.position_ids" not in changed
        if name == "unchanged":
            assert not changed
        else:
            assert f"{prefix}encoder.layer.0.attention.self.query.weight" in changed


def check_neighbours(artifacts: Path, backbone: Path, test: Texts) -> None:
    """What was the nearest text is still among the nearest."""
    before = nearest(encode(backbone, test)[1], 5)
    for name in ("unchanged", *CANDIDATES):
        kept = (nearest(encode(artifacts / name, test)[1], 1) == before).any(1).float().mean()
        assert kept == 1 if name == "unchanged" else kept > 0.9, name


def test_features_keep_their_neighbours(tmp_path: Path) -> None:
    backbone = minilm(tmp_path / "minilm")
    train, test = definitions()
    artifacts = run(PACKAGED, train, test, tmp_path)
    report = read_json(artifacts / "report.json")
    assert (report["task"], report["library"]) == ("feature-extraction", "transformers")
    own = {name: row["accuracy"] for name, row in report["own_task"].items()}
    assert own["unchanged"] > 0.7
    assert min(own.values()) > own["unchanged"] - 0.05
    check_weights(artifacts, backbone, "")
    check_neighbours(artifacts, backbone, test)


def test_a_classifier_and_back_into_transformers(tmp_path: Path) -> None:
    backbone = minilm(tmp_path / "minilm")
    train, test = definitions()
    classifier(backbone, train, tmp_path / "model")
    artifacts = run(tmp_path / "model", train, test, tmp_path)
    report = read_json(artifacts / "report.json")
    assert (report["task"], report["library"]) == ("text-classification", "transformers")
    own = {name: row["accuracy"] for name, row in report["own_task"].items()}
    assert own["unchanged"] > 0.7
    for name in ("unchanged", *CANDIDATES):
        assert accuracy(artifacts / name, test) == pytest.approx(own[name], abs=0.006)  # one of 180
        assert own[name] > own["unchanged"] - 0.05
    check_weights(artifacts, tmp_path / "model", "bert.")
    check_neighbours(artifacts, backbone, test)
