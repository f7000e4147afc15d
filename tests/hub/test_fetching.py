"""Inputs from the Hub as a worker fetches them: pinned, only what is needed, sampled where they are too large."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from known_core.errors import KnownError
from known_core.fetching import fetch_inputs, open_all, origins, resolve_refs
from known_core.files import read_json, sha256_tree
from known_core.hub import Hub, HubRef
from known_core.inspection import inspect
from known_core.spec import DataSettings, JobSpec
from tests.hub.server import File, LocalHub
from tests.hub.test_enhance import data_files, model_files

Client = Callable[[str | None], HfApi]
LARGE = 1 << 40  # bytes


@pytest.fixture
def access(hub: LocalHub, client: Client, tmp_path: Path) -> Hub:
    """alice's, to a Hub with her model and data."""
    hub.add("models", "alice/resnet", model_files(tmp_path / "model"), private=True)
    hub.add("datasets", "alice/digits", data_files(tmp_path / "data"), private=True)
    client("alice")
    return Hub(hub.url, "hf_alice", tmp_path / "cache", LARGE)


@pytest.fixture
def refs(access: Hub) -> dict[str, HubRef]:
    return resolve_refs(access, {"model": ("alice/resnet", None), "dataset": ("alice/digits", "main")})


def spec_for(folder: Path, refs: dict[str, HubRef], **data: Any) -> JobSpec:
    paths = {name: folder / name for name in refs}
    return JobSpec(**paths, data=DataSettings(columns={"label": "digit"}, **data), origins=origins(refs))


def test_a_branch_that_moves_changes_nothing(
    hub: LocalHub, access: Hub, refs: dict[str, HubRef], tmp_path: Path
) -> None:
    spec = spec_for(tmp_path / "in", refs)
    assert inspect(spec, open_all(spec, access, refs))["dataset"]["train_examples"] == 300
    before = hub.repos["models", "alice/resnet"].refs["main"]
    hub.repos["models", "alice/resnet"].commit("main", "moved", {"config.json": File(b"{}")})
    fetched = fetch_inputs(spec, access, refs, tmp_path / "in", max_dataset_bytes=LARGE)
    assert fetched == spec
    assert read_json(tmp_path / "in" / "model" / "config.json")["model_type"] == "resnet"
    assert fetched.origins["model"]["hub"]["revision"] == before
    assert inspect(fetched)["parameters"] == 1967
    assert sorted(path.name for path in (tmp_path / "in" / "model").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "notes.txt", "preprocessor_config.json"
    ]  # fmt: skip


def test_only_the_files_of_the_splits_come(hub: LocalHub, access: Hub, refs: dict[str, HubRef], tmp_path: Path) -> None:
    extra = {"other/train.csv": File(b"x" * 1000), "data/validation.parquet": File(b"not asked for", lfs=True)}
    hub.repos["datasets", "alice/digits"].commit("main", "more", extra)
    refs["dataset"] = access.resolve(HubRef("alice/digits", None, "dataset"))
    spec = spec_for(tmp_path / "in", refs, evaluation_split="test", config="data")
    fetch_inputs(spec, access, refs, tmp_path / "in", max_dataset_bytes=LARGE)
    assert sorted(path.name for path in (tmp_path / "in" / "dataset" / "data").iterdir()) == [
        "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"
    ]  # fmt: skip
    assert not (tmp_path / "in" / "dataset" / "other").exists()


@pytest.mark.parametrize(("limit", "wish"), [(30_000, {}), (LARGE, {"max_examples": 100})])
def test_what_is_too_large_is_sampled(
    access: Hub, refs: dict[str, HubRef], tmp_path: Path, limit: int, wish: dict[str, int]
) -> None:
    spec = spec_for(tmp_path / "in", refs, **wish)
    fetched = fetch_inputs(spec, access, refs, tmp_path / "in", max_dataset_bytes=limit)
    sample = fetched.origins["dataset"]["sample"]
    assert sample["train"]["rows"] == 300
    kept = sample["train"]["rows_kept"]
    assert 10 <= kept < 300
    assert kept == wish.get("max_examples", kept)
    summary = inspect(fetched)["dataset"]
    assert summary["train_examples"] == kept
    assert set(summary["train"]) == {"0", "1", "2", "3", "4"}
    tables = [pq.read_table(path) for path in (tmp_path / "in" / "dataset").rglob("*.parquet")]
    assert sum(table.nbytes for table in tables) <= limit
    again = fetch_inputs(spec, access, refs, tmp_path / "again", max_dataset_bytes=limit)
    assert again.origins == fetched.origins
    assert sha256_tree(tmp_path / "in" / "dataset") == sha256_tree(tmp_path / "again" / "dataset")


def test_what_is_here_is_not_fetched_again(hub: LocalHub, access: Hub, refs: dict[str, HubRef], tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "in", refs, max_examples=100)
    first = fetch_inputs(spec, access, refs, tmp_path / "in", max_dataset_bytes=LARGE)
    hub.requests.clear()
    told: list[tuple[int, int]] = []
    again = fetch_inputs(
        spec, access, refs, tmp_path / "in", max_dataset_bytes=LARGE, on_bytes=lambda *part: told.append(part)
    )
    assert again == first
    assert [line for line in hub.requests if line.startswith("GET") and "model.safetensors" in line] == []
    assert told[-1][0] == told[-1][1]


def test_an_adapter_s_base_is_found(hub: LocalHub, access: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16)
    base = transformers.GPT2LMHeadModel(config)
    base.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    peft.get_peft_model(base, lora).save_pretrained(str(tmp_path / "adapter"))
    named = read_json(tmp_path / "adapter" / "adapter_config.json") | {"base_model_name_or_path": "alice/gpt"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    for name in ("base", "adapter"):
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        hub.add("models", f"alice/{'gpt' if name == 'base' else 'lora'}", files, private=True)
    refs = resolve_refs(access, {"model": ("alice/lora", None)})
    assert refs["base"] == HubRef("alice/gpt", hub.repos["models", "alice/gpt"].refs["main"])


@pytest.mark.parametrize(
    "fields",
    [{"base_model_name_or_path": "/home/someone/base"}, {"base_model_name_or_path": "../base"},
     {"base_model_name_or_path": ["a/b"]}, {"base_model_name_or_path": "alice/gpt", "revision": 5}, {}],
    ids=str,
)  # fmt: skip
def test_an_adapter_whose_base_is_no_repository(hub: LocalHub, access: Hub, fields: dict[str, Any]) -> None:
    """It is left to the inspection, which says that the base is missing and how to give it."""
    hub.add("models", "alice/lora", {"adapter_config.json": json.dumps({"peft_type": "LORA", **fields}).encode()})
    assert list(resolve_refs(access, {"model": ("alice/lora", None)})) == ["model"]


def test_a_base_that_is_not_there_points_at_the_model(hub: LocalHub, access: Hub) -> None:
    fields = {"peft_type": "LORA", "base_model_name_or_path": "alice/gone"}
    hub.add("models", "alice/lora", {"adapter_config.json": json.dumps(fields).encode()})
    with pytest.raises(KnownError, match="alice/gone") as caught:
        resolve_refs(access, {"model": ("alice/lora", None)})
    assert (caught.value.code, caught.value.pointer) == ("hub_not_found", "/model/hub")


def test_errors_point_at_the_input(access: Hub, refs: dict[str, HubRef], tmp_path: Path) -> None:
    with pytest.raises(KnownError) as caught:
        resolve_refs(access, {"model": ("alice/resnet", None), "downstream": ("alice/gone", None)})
    assert (caught.value.code, caught.value.pointer) == ("hub_not_found", "/evaluation/downstream/hub")
    stolen = Hub(access.endpoint, "hf_bob", access.cache, LARGE)
    spec = spec_for(tmp_path / "in", refs)
    fetch_inputs(spec, access, refs, tmp_path / "in", max_dataset_bytes=LARGE)
    with pytest.raises(KnownError) as caught:  # that alice's files lie in the cache opens nothing
        fetch_inputs(spec, stolen, refs, tmp_path / "bob", max_dataset_bytes=LARGE)
    assert (caught.value.code, caught.value.pointer) == ("hub_not_found", "/model/hub")
    assert not (tmp_path / "bob").exists() or not any((tmp_path / "bob").iterdir())
