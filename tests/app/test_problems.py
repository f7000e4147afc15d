"""Bad input gets a 4xx problem that names the value and the remedy, and nothing is queued."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from known_core.client import Client
from known_core.sample_data import ImageArrays, load_sample, write_imagefolder
from known_core.stack import Stack
from tests.conftest import CONFIG, Inputs


def _upload(stack: Stack, data: bytes) -> str:
    answer = httpx.post(
        f"{stack.url}/v1/uploads", content=data, headers={"Content-Type": "application/octet-stream"}, timeout=60
    )
    return str(answer.json()["id"])


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def _lying(model: bytes) -> bytes:
    """A header that claims more bytes than there are."""
    length = int.from_bytes(model[:8], "little")
    header = json.loads(model[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    header[last]["data_offsets"][1] += 4
    body = json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + model[8 + length :]


def _check(stack: Stack, request: dict[str, Any], code: str, status: int = 422) -> dict[str, Any]:
    jobs = httpx.get(f"{stack.url}/v1/jobs", params={"limit": 1}).json()["first_id"]
    answer = httpx.post(f"{stack.url}/v1/enhance", json=request, timeout=120)
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["hint"]
    assert httpx.get(f"{stack.url}/v1/jobs", params={"limit": 1}).json()["first_id"] == jobs, "a job was queued"
    return problem


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pickle", "unsafe_format"),
        ("truncated", "size_mismatch"),
        ("header truncated", "header_truncated"),
        ("lying", "tensor_invalid"),
        ("tiny", "header_too_small"),
        ("auto_map", "remote_code_refused"),
        ("code", "remote_code_refused"),
        ("unknown model_type", "unsupported_architecture"),
        ("bin", "unsafe_format"),
        ("zip slip", "archive_path_invalid"),
        ("tar", "archive_format_refused"),
    ],
)
def test_bad_models(stack: Stack, client: Client, inputs: Inputs, name: str, code: str) -> None:
    model = inputs.model.read_bytes()
    config = json.dumps(CONFIG).encode()
    content = {
        "pickle": _pickle(),
        "truncated": model[:-100],
        "header truncated": model[:200],
        "lying": _lying(model),
        "tiny": b"1234567",
        "auto_map": _zip({
            "config.json": json.dumps({"model_type": "resnet", "auto_map": {"AutoConfig": "evil.Config"}}).encode(),
            "model.safetensors": model,
        }),
        "code": _zip({"config.json": config, "model.safetensors": model, "modeling_evil.py": b"import os"}),
        "unknown model_type": _zip({"config.json": b'{"model_type": "gpt9"}', "model.safetensors": model}),
        "bin": _zip({"config.json": config, "pytorch_model.bin": b"PK"}),
        "zip slip": _zip({"config.json": config, "../../evil.safetensors": model}),
        "tar": b"\0" * 257 + b"ustar" + b"\0" * 300,
    }[name]  # fmt: skip
    request = inputs.request(client, stack.url)
    bare = content[:4] != b"PK\x03\x04" or name == "pickle"
    request["model"] = {"upload_id": _upload(stack, content), **({"config": CONFIG} if bare else {})}
    problem = _check(stack, request, code)
    assert problem["errors"][0]["pointer"].startswith("/model")


def test_other_architectures_and_key_sets(stack: Stack, client: Client, inputs: Inputs) -> None:
    request = inputs.request(client, stack.url)
    for config, code, named in (
        ({**CONFIG, "architecture": "resnet9000"}, "unsupported_architecture", "resnet9000"),
        ({**CONFIG, "width": 8}, "tensors_mismatch", "features.0.0.weight is [4, 1, 3, 3]"),
        ({**CONFIG, "norm": "none"}, "tensors_mismatch", "unexpected features.0.1.running_mean"),
        ({**CONFIG, "width": 10**9}, "config_invalid", "1000000000"),
        ({**CONFIG, "num_classes": 4, "label_names": None}, "tensors_mismatch", "head.weight is [5, 32]"),
        ({**CONFIG, "label_names": ["a", "b", "c", "d", "e"]}, "labels_mismatch", "['0', '1', '2', '3', '4']"),
    ):
        problem = _check(stack, {**request, "model": {**request["model"], "config": config}}, code)
        assert named in problem["detail"]
    del request["model"]["config"]
    _check(stack, request, "config_missing")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("empty zip", "no examples"),
        ("one class", "class '0'"),
        ("text", "the image is in none"),
        ("too few", "too few"),
    ],
)
def test_bad_data_sets(stack: Stack, client: Client, inputs: Inputs, tmp_path: Path, name: str, named: str) -> None:
    digits = load_sample("digits")
    path = tmp_path / "data.zip"
    if name == "one class":
        write_imagefolder(path, digits.of_classes([0]))
    elif name == "too few":
        five = digits.of_classes([0, 1, 2, 3, 4])
        write_imagefolder(path, ImageArrays(five.images[:15], five.labels[:15], five.classes))
    else:
        path.write_bytes(_zip({} if name == "empty zip" else {"train/0/notes.txt": b"no image"}))
    request = inputs.request(client, stack.url, dataset={"upload_id": _upload(stack, path.read_bytes())})
    problem = _check(stack, request, "dataset_unusable")
    assert named in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/dataset"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"unknown": 1}, "/unknown"),
        ({"forgetting": {"momentum": 0.9}}, "/forgetting/momentum"),
        ({"forgetting": {"learning_rate": 1e30}}, "/forgetting/learning_rate"),
        ({"forgetting": {"epochs_per_stage": 10**9}}, "/forgetting/epochs_per_stage"),
        ({"forgetting": {"batch_size": -1}}, "/forgetting/batch_size"),
        ({"forgetting": {"rate": 2}}, "/forgetting/rate"),
        ({"forgetting": {"states": 7}}, "/forgetting/states"),
        ({"evaluation": {"seeds": 1}}, "/evaluation/seeds"),
        ({"evaluation": {"select": "x3"}}, "/evaluation/select"),
        ({"nowcast": {"hypermodel": "../../etc/passwd"}}, "/nowcast/hypermodel"),
        ({"model": {"upload_id": "upl_" + "0" * 24}}, "/model/upload_id"),
        ({"dataset": {"upload_id": "../x"}}, "/dataset/upload_id"),
        ({"task": "alchemy"}, "/task"),
        ({"metadata": {"k": 1}}, "/metadata/k"),
    ],
)
def test_bad_settings_are_pointed_at(
    stack: Stack, client: Client, inputs: Inputs, change: dict[str, Any], pointer: str
) -> None:
    answer = httpx.post(f"{stack.url}/v1/enhance", json=inputs.request(client, stack.url, **change), timeout=60)
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(stack: Stack, client: Client, inputs: Inputs, number: str) -> None:
    body = json.dumps(inputs.request(client, stack.url, forgetting={"learning_rate": 12345})).replace("12345", number)
    answer = httpx.post(f"{stack.url}/v1/enhance", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/forgetting/learning_rate"
    assert "finite number" in answer.json()["detail"]


def test_a_body_that_is_not_json_is_400(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/v1/enhance", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "json_invalid")


def test_unknown_routes_and_methods(stack: Stack) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/v1/jobs", 405), ("GET", "/v1/enhance", 405)):
        answer = httpx.request(method, stack.url + path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
