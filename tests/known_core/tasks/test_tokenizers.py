"""Tokenizers are read as data from the checkpoint's files; wrong and hostile ones are refused at inspection."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from known_core import inspection, pipeline
from known_core.checkpoint.source import FolderSource
from known_core.errors import KnownError
from known_core.models.config import read_config
from known_core.spec import ForgettingSettings, JobSpec
from known_core.tasks import TASKS
from known_core.tasks.texts import Tokens
from tests.known_core.tasks import tiny


def tokens_of(folder: Path, task: str = "text-classification", max_length: int | None = None) -> Tokens:
    source = FolderSource(folder)
    tokens = TASKS[task].processor(TASKS[task].network(read_config(source, None)), source, max_length)
    assert isinstance(tokens, Tokens)
    return tokens


def edit(file: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    return change


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def larger(folder: Path) -> None:
    """The tokenizer of another model."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {f"word{index}": 1000 + index for index in range(500)}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))


@pytest.mark.parametrize(("change", "code"), [
    (lambda folder: (folder / "tokenizer.json").unlink(), "processor_missing"),
    (write("tokenizer.json", "{"), "processor_invalid"),
    (write("tokenizer.json", '{"model": {"type": "evil"}}'), "processor_invalid"),
    (write("tokenizer_config.json", "[]"), "processor_invalid"),
    (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.py", None]}), "remote_code_refused"),
    (edit("tokenizer_config.json", trust_remote_code=True), "config_field_refused"),
    (larger, "processor_invalid"),
    (lambda folder: (folder / "tokenization.py").write_text("import os"), "remote_code_refused"),
], ids=["none", "not JSON", "no model", "a list", "auto_map", "trust", "larger", "code"])  # fmt: skip
def test_tokenizers_that_are_refused(tmp_path: Path, change: Callable[[Path], None], code: str) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    change(model)
    spec = JobSpec(model=model, dataset=tiny.texts_with_label(tmp_path / "data.parquet"))
    with pytest.raises(KnownError) as caught:
        inspection.inspect(spec)
    assert (caught.value.code, caught.value.pointer) == (code, "/model")


def test_a_class_that_transformers_lacks_and_no_padding_are_made_up_for(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification")
    edit("tokenizer_config.json", tokenizer_class="SomeoneElsesTokenizer", pad_token=None)(model)
    assert tokens_of(model).tokenizer.pad_token is not None


def test_masked_models_need_a_mask(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForMaskedLM")
    edit("tokenizer_config.json", mask_token=None)(model)
    with pytest.raises(KnownError, match=r"no mask token \(processor_invalid\)"):
        tokens_of(model, "masked-lm")


def test_texts_have_as_many_tokens_as_the_network_has_places(tmp_path: Path) -> None:
    model = tiny.save_bert(tmp_path / "model", "BertForSequenceClassification", max_position_embeddings=16)
    assert tokens_of(model).max_length == 16
    assert tokens_of(model, max_length=9).max_length == 9
    (item,) = tokens_of(model, max_length=9).encode(["one two three four five six seven eight nine ten"])
    assert len(item["input_ids"]) == 9
    decoder = tiny.save_gpt2(tmp_path / "decoder", n_positions=12)
    assert tokens_of(decoder, "causal-lm").max_length == 12


def test_batches_are_as_long_as_their_longest_example(tmp_path: Path) -> None:
    tokens = tokens_of(tiny.save_bert(tmp_path / "model", "BertForSequenceClassification"))
    batch = tokens.pad(tokens.encode(["The old farmer", "My sister enjoyed a wonderful concert today."]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"][1].all()
    short = batch["attention_mask"][0] == 0
    assert short.any()
    assert (batch["input_ids"][0][short] == tokens.tokenizer.pad_token_id).all()


def test_too_little_text(tmp_path: Path) -> None:
    model = tiny.save_gpt2(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = JobSpec(model=model, dataset=tmp_path / "data.jsonl", forgetting=ForgettingSettings(max_length=32))
    with pytest.raises(KnownError, match=r"less than two blocks of 32 \(dataset_unusable\)"):
        pipeline.run(spec, tmp_path / "job", lambda event: None)
