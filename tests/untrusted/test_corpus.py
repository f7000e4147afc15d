"""Every line of the list of malicious inputs (docs/security.md) through the API: its error, and nothing has changed."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from known_core.client import Client
from known_core.stack import Stack
from tests.conftest import CONFIG, Inputs
from tests.known_core.test_header import HOSTILE
from tests.untrusted import made
from tests.untrusted.conftest import HTTP

BINARY = {"Content-Type": "application/octet-stream"}
Build = Callable[[Path], bytes | dict[str, Any]]  # of the path of the canary: what is uploaded, or the input itself


def whole(index: Any) -> dict[str, Any]:
    return {"metadata": {"total_size": 1}, "weight_map": index}


def vit(**fields: Any) -> bytes:
    return made.checkpoint(config={**made.VIT, **fields})


def _weights(blob: bytes) -> Build:
    return lambda _: made.checkpoint(blob)


def _pickle_named(suffix: str) -> Build:
    return lambda canary: made.zipped(
        {"config.json": json.dumps(CONFIG), f"weights.{suffix}": made.torch_pickled(canary)}
    )


def _shard_of(kind: int) -> Build:
    return lambda _: made.indexed(whole({"a": made.SHARD}), kind)


def _slips_to(name: str) -> Build:
    return lambda _: made.zipped(made.images({name: b"x"}))


# a bare file is given the config with the request, a zip has its own

MODELS: dict[str, tuple[str, Build]] = {
    **{f"header: {name}": (code, _weights(blob)) for name, (code, blob) in HOSTILE.items()},
    "7 bytes alone": ("header_too_small", lambda _: b"1234567"),
    "200,000 empty tensors": ("too_many_tensors", lambda _: made.checkpoint(made.many_tensors(200_000))),
    "NaN": ("nonfinite_weights", lambda _: made.changed("hidden.weight", torch.nan)),
    "infinity, zipped": ("nonfinite_weights", lambda _: made.checkpoint(made.changed("head.bias", torch.inf))),
    "NaN in float16": ("nonfinite_weights", lambda _: made.changed("head.weight", torch.nan, torch.float16)),
    "pickle alone": ("unsafe_format", made.pickled),
    "torch.save alone": ("unsafe_format", made.torch_pickled),
    "pickle named .safetensors": ("unsafe_format", lambda canary: made.checkpoint(made.pickled(canary))),
    "torch.save named .safetensors": ("unsafe_format", lambda canary: made.checkpoint(made.torch_pickled(canary))),
    **{
        f"pickle named {suffix}": ("unsafe_format", _pickle_named(suffix))
        for suffix in ("bin", "pt", "pth", "ckpt", "pkl")
    },
    "auto_map with its code": (
        "remote_code_refused",
        lambda canary: made.checkpoint(
            config={"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, evil__py=made.script(canary)
        ),
    ),
    "auto_map alone": ("remote_code_refused", lambda _: vit(auto_map={"AutoModel": "user/repo--evil.Model"})),
    "auto_map, nested": ("remote_code_refused", lambda _: vit(text_config={"auto_map": {"AutoConfig": "evil.C"}})),
    "auto_map of a tokenizer": (
        "remote_code_refused",
        lambda _: made.checkpoint(tokenizer_config__json='{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
    ),
    "a .py file alone": ("remote_code_refused", lambda canary: made.checkpoint(setup__py=made.script(canary))),
    "trust_remote_code": ("config_field_refused", lambda _: vit(trust_remote_code=True)),
    "trust_remote_code, nested": ("config_field_refused", lambda _: vit(a=[{"b": {"trust_remote_code": True}}])),
    "_attn_implementation_internal": (
        "config_field_refused",
        lambda _: vit(_attn_implementation_internal="user/kernel"),
    ),
    "attn_implementation of a part": (
        "config_field_refused",
        lambda _: vit(vision_config={"_attn_implementation": "user/kernel"}),
    ),
    "unknown model type": ("unsupported_architecture", lambda _: vit(model_type="gpt9")),
    "unknown class": ("task_unclear", lambda _: vit(architectures=["os.system"])),
    "hidden_size 1e9": ("model_too_large", lambda _: vit(hidden_size=10**9)),
    "1e6 layers": ("model_too_large", lambda _: vit(num_hidden_layers=10**6)),
    "an integer of 4,000 digits": ("model_too_large", lambda _: vit(hidden_size=10**3999)),
    "an integer of 5,000 digits": (
        "config_invalid",
        lambda _: made.zipped({"config.json": '{"a": ' + "9" * 5000 + "}", "model.safetensors": made.MODEL}),
    ),
    "config 5,000 deep": (
        "config_invalid",
        lambda _: made.zipped({"config.json": "[" * 5000 + "]" * 5000, "model.safetensors": made.MODEL}),
    ),
    "config that is no UTF-8": (
        "config_invalid",
        lambda _: made.zipped({"config.json": b'{"model_type": "\xff"}', "model.safetensors": made.MODEL}),
    ),
    "half a surrogate pair": ("config_invalid", lambda _: vit(note="\ud800")),
    "weight_map with ../": ("shard_path_invalid", lambda _: made.indexed(whole({"a": "../model.safetensors"}))),
    "weight_map, absolute": ("shard_path_invalid", lambda _: made.indexed(whole({"a": "/etc/x.safetensors"}))),
    "weight_map of numbers": ("shard_path_invalid", lambda _: made.indexed(whole({"a": 3}))),
    "weight_map to a shard that is not there": (
        "weights_missing",
        lambda _: made.indexed(whole({"a": "b.safetensors"})),
    ),
    "index without metadata": ("index_invalid", lambda _: made.indexed({"weight_map": {"a": made.SHARD}})),
    "index of nothing": ("index_invalid", lambda _: made.indexed(whole({}))),
    **{f"shard that is a {name}": ("not_regular_file", _shard_of(kind)) for name, kind in made.LINKS.items()},
    "chat template": (
        "template_refused",
        lambda canary: made.checkpoint(tokenizer_config__json=json.dumps({"chat_template": made.template(canary)})),
    ),
    "chat template by name": (
        "template_refused",
        lambda canary: made.checkpoint(
            tokenizer_config__json=json.dumps({"chat_template": [{"name": "x", "template": made.template(canary)}]})
        ),
    ),
    "chat_template.jinja": (
        "template_refused",
        lambda canary: made.checkpoint(chat_template__jinja=made.template(canary)),
    ),
    "chat template of other files": (
        "template_refused",
        lambda _: made.checkpoint(chat_template__jinja="{% include '/etc/passwd' %}"),
    ),
    "chat template by attribute": (
        "template_refused",
        lambda _: made.checkpoint(chat_template__jinja="{{ ''|attr('__cla' ~ 'ss__') }}"),
    ),
    "chat template 5,000 deep": (
        "template_refused",
        lambda _: made.checkpoint(chat_template__jinja="{{" + "(" * 5000 + "1" + ")" * 5000 + "}}"),
    ),
    "zip slip": (
        "archive_path_invalid",
        lambda _: made.zipped({"config.json": json.dumps(CONFIG), "../../evil": b"x"}),
    ),
    "tar": ("archive_format_refused", lambda _: made.tarred("")),
    "repository ../x": ("repo_id_invalid", lambda _: {"hub": {"repo_id": "../x"}}),
    "repository with a query": ("repo_id_invalid", lambda _: {"hub": {"repo_id": "user/x?a=b"}}),
    "repository that is an address": (
        "endpoint_not_allowed",
        lambda _: {"hub": {"repo_id": "http://169.254.169.254/x"}},
    ),
}

DATA: dict[str, tuple[str, Build]] = {
    "loading script": (
        "dataset_script_refused",
        lambda canary: made.zipped(made.images() | {"d.py": made.script(canary)}),
    ),
    "zip bomb": ("archive_limit", lambda _: made.zipped({"train/0/a.png": bytes(150_000_000)})),
    "nested zip": ("archive_limit", lambda _: made.zipped({"train/0/a.zip": made.zipped({"a": bytes(10_000_000)})})),
    "claims 1e6 entries": ("archive_limit", lambda _: made.claims_entries(1_000_000)),
    "claims 2^63 entries": ("archive_limit", lambda _: made.claims_entries(1 << 63)),
    **{
        f"zip slip {name}": ("archive_path_invalid", _slips_to(name))
        for name in ("../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil")
    },
    "link": (
        "not_regular_file",
        lambda _: made.zipped(made.images({"train/0/z.png": b"/etc/passwd"}), made.LINKS["link"]),
    ),
    "gzipped tar": ("archive_format_refused", lambda _: made.tarred("gz")),
    "60,000 x 60,000 PNG": (
        "image_limit",
        lambda _: made.zipped(made.images({"train/4/z.png": made.png_that_says(60_000, 60_000)})),
    ),
    "no image": ("dataset_unusable", lambda canary: made.zipped(made.images({"train/4/z.png": made.pickled(canary)}))),
    "PostScript named .png": (
        "dataset_unusable",
        lambda canary: made.zipped(made.images({"train/4/z.png": f"%!PS\n(%pipe%touch {canary}) (w) file".encode()})),
    ),
    "giant row": ("row_limit", lambda _: made.parquet(["a" * 100_000_000, "b"], 2)),
    "label -1": ("label_out_of_range", lambda _: made.parquet([0, 1, 2, 3, -1])),
    "label 2^62": ("label_out_of_range", lambda _: made.parquet([0, 1, 2, 3, 1 << 62])),
    "other labels than the model's": ("labels_mismatch", lambda _: made.parquet(["0", "1", "2", "3", "other"])),
    "empty zip": ("dataset_unusable", lambda _: made.zipped({})),
    "parquet without rows": ("dataset_unusable", lambda _: made.parquet([0, 1], 0)),
    "one class": ("dataset_unusable", lambda _: made.zipped(made.images(classes=1))),
    "NaN alone": ("dataset_unusable", lambda _: made.parquet([float("nan")])),
    "parquet whose footer contradicts itself": (  # a column without nulls, with a histogram of them
        "dataset_unusable",
        lambda _: made.parquet([0, 1]).replace(b"%\x02\x18\x05label", b"%\x00\x18\x05label"),
    ),
    "no parquet": ("dataset_unusable", lambda _: b"PAR1" + bytes(100) + b"PAR1"),
    "pickle": ("dataset_unusable", made.pickled),
    "card that runs commands": (
        "dataset_unusable",
        lambda canary: made.zipped({**made.images(classes=1), "README.md": made.card(canary)}),
    ),
    "repository ../x": ("repo_id_invalid", lambda _: {"hub": {"repo_id": "../x"}}),
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once a payload has run."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "a payload was run"


def state_of(stack: Stack) -> dict[str, Any]:
    """What a request could change: jobs, uploads, folders; an upload's record notes when it was last used."""
    root = stack.logs.parent
    jobs = HTTP.get(f"{stack.url}/v1/jobs", params={"limit": 1}).json()["first_id"]
    files: dict[Path, os.stat_result] | None = None
    while files is None:
        with suppress(FileNotFoundError):  # an upload was dropped while it was looked at: look again
            files = {path: path.stat() for path in root.glob("uploads/*/*/*")}
    uploads = {path: seen.st_mtime_ns if path.name == "content" else seen.st_size for path, seen in files.items()}
    return {"jobs": jobs, "uploads": uploads, "folders": sorted(root.glob("jobs/*"))}


def put(stack: Stack, content: bytes, filename: str) -> str:
    """The id of an upload whose bytes are as they were sent."""
    answer = HTTP.post(f"{stack.url}/v1/uploads", params={"filename": filename}, content=content, headers=BINARY)
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert upload["sha256"] == hashlib.sha256(content).hexdigest()
    return str(upload["id"])


def refused(stack: Stack, request: dict[str, Any], code: str, pointer: str) -> None:
    """The request has this error, which points at its field, and changes nothing."""
    before = state_of(stack)
    answer = HTTP.post(f"{stack.url}/v1/enhance", json=request)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code), problem
    assert problem["hint"]
    assert all(error["pointer"].startswith(pointer) for error in problem["errors"])
    assert len(answer.content) < 5_000
    assert state_of(stack) == before


@pytest.mark.parametrize("name", MODELS)
def test_models(stack: Stack, client: Client, inputs: Inputs, canary: Path, name: str) -> None:
    code, build = MODELS[name]
    content, request = build(canary), inputs.request(client, stack.url)
    if isinstance(content, dict):
        request["model"] = content
    else:
        bare = content[:2] != b"PK" or name == "torch.save alone"
        request["model"] = {"upload_id": put(stack, content, "m"), **({"config": CONFIG} if bare else {})}
    refused(stack, request, code, "/task" if code == "task_unclear" else "/model")


@pytest.mark.parametrize("field", ["dataset", "downstream"])
@pytest.mark.parametrize("name", DATA)
def test_data_sets(stack: Stack, client: Client, inputs: Inputs, canary: Path, name: str, field: str) -> None:
    code, build = DATA[name]
    content, request = build(canary), inputs.request(client, stack.url)
    given = content if isinstance(content, dict) else {"upload_id": put(stack, content, "d.parquet")}
    if field == "dataset":
        request["dataset"] = given
    elif code == "labels_mismatch":
        pytest.skip("fine-tuning on other classes is what a downstream set is for")
    else:
        request["evaluation"]["downstream"] = given
    refused(stack, request, code, "/dataset" if field == "dataset" else "/evaluation/downstream")


def test_a_trajectory_of_hostile_states(stack: Stack, canary: Path) -> None:
    fine, pickle_ = put(stack, made.MODEL, "m"), put(stack, made.pickled(canary), "m")
    states = [{"upload_id": upload} for upload in (fine, fine, pickle_, fine, fine)]
    refused(stack, {"trajectory": states}, "unsafe_format", "/trajectory/2")


def test_an_empty_upload_is_refused_at_once(stack: Stack) -> None:
    before = state_of(stack)
    answer = HTTP.post(f"{stack.url}/v1/uploads", content=b"", headers=BINARY)
    assert (answer.status_code, answer.json()["code"]) == (422, "upload_empty")
    assert state_of(stack) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"forgetting": {"learning_rate": 1e30}}, {"forgetting": {"epochs_per_stage": 10**9}},
        {"forgetting": {"batch_size": -1}}, {"forgetting": {"seed": 10**30}}, {"forgetting": {"rate": "0.5; rm"}},
        {"evaluation": {"probe_learning_rates": [1e30]}}, {"nowcast": {"hypermodel": "../../etc/passwd"}},
        {"output": {"max_shard_size": "1e99GB"}}, {"metadata": {"k": "\ud800"}}, {"task": "\ud800"},
        {"task": "../../etc"}, {"metadata": {str(index): "x" for index in range(17)}}, {"trajectory": []},
    ],
    ids=str,
)  # fmt: skip
def test_settings(stack: Stack, client: Client, inputs: Inputs, settings: dict[str, Any]) -> None:
    body = json.dumps(inputs.request(client, stack.url, **settings))
    before = state_of(stack)
    answer = HTTP.post(f"{stack.url}/v1/enhance", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]
    assert state_of(stack) == before


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """What the canary is for: loaded the wrong way, each payload leaves it."""
    import jinja2
    import yaml

    def card_of(path: Path) -> None:
        yaml.load(made.card(path).split("---\n")[1], yaml.UnsafeLoader)

    for index, run in enumerate([
        lambda path: pickle.loads(made.pickled(path)),
        lambda path: exec(made.script(path)),
        lambda path: jinja2.Template(made.template(path)).render(),
        card_of,
    ]):  # fmt: skip
        path = tmp_path / str(index)
        run(path)
        assert path.exists(), index


def test_the_data_that_the_cases_spoil_is_fine(stack: Stack, client: Client, inputs: Inputs) -> None:
    """Otherwise their errors could be about something else."""
    model = {"upload_id": put(stack, made.checkpoint(), "m.zip")}
    for content in (made.zipped(made.images()), made.parquet([0, 1, 2, 3, 4])):
        request = inputs.request(
            client, stack.url, model=model, dataset={"upload_id": put(stack, content, "d.parquet")}
        )
        answer = HTTP.post(f"{stack.url}/v1/enhance", params={"dry_run": True}, json=request)
        assert answer.status_code == 200, answer.text
    assert pa.types.is_floating(pa.array([float("nan")]).type)
