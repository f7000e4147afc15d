"""docker-compose.yml and Dockerfile.gpu: their commands run here, as their users, with their environment and paths."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CONFIG, QUICK, Inputs
from tests.deploy.containers import IMAGE_USER, ROOT, Containers, compose

VARIABLES = {"REDIS_PASSWORD": "not-a-secret", "KNOWN_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode()}
BUCKET = {  # as .env.example says
    "KNOWN_STORAGE_URL": "s3://known/prod", "KNOWN_STORAGE_ENDPOINT": "http://s3:9000",
    "KNOWN_STORAGE_PUBLIC_ENDPOINT": "http://127.0.0.1:9000", "AWS_ACCESS_KEY_ID": "known",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-either",
}  # fmt: skip


def test_secrets_have_to_be_set() -> None:
    for name in VARIABLES:
        with pytest.raises(KeyError, match=f"{name}: see .env.example"):
            compose({other: value for other, value in VARIABLES.items() if other != name})
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert named == set(re.findall(r"^(\w+)=", example, flags=re.MULTILINE))


def test_services_are_durable_and_hold_no_privilege() -> None:
    services = compose(VARIABLES)["services"]
    command = " ".join(services["redis"]["command"])
    assert "--appendonly yes --appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command
    for name in ("api", "worker", "worker-cpu", "s3"):
        service = services[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["api"]["environment"]["KNOWN_ACCESS"] == "keys"
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert services["s3"]["profiles"] == ["s3"]
    assert services["s3"]["ports"] == ["127.0.0.1:9000:9000"]
    assert services["worker"]["command"] == services["worker-cpu"]["command"]


def test_the_image_is_what_the_services_assume() -> None:
    text = (ROOT / "Dockerfile.gpu").read_text()
    assert re.search(r"^ARG BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04$", text, flags=re.MULTILINE)
    assert f"USER {IMAGE_USER}:{IMAGE_USER}" in text
    worker = compose(VARIABLES)["services"]["worker"]
    assert json.loads(re.findall(r"^CMD (.*)$", text, flags=re.MULTILINE)[0]) == worker["command"]
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (.*)$", text, flags=re.MULTILINE)
    assert json.loads(health) == worker["healthcheck"]["test"][1:]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and an overlay need root")
@pytest.mark.parametrize("bucket", [False, True], ids=["volume", "bucket"])
def test_every_command_runs_and_a_job_goes_through(tmp_path: Path, inputs: Inputs, bucket: bool) -> None:
    """In namespaces of their own: see :mod:`tests.deploy.containers`."""
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    command = [sys.executable, "-m", "tests.deploy.test_compose", str(tmp_path), str(inputs.model), str(inputs.dataset)]
    done = subprocess.run(
        [*namespaces, *command, *(["bucket"] if bucket else [])],
        cwd=ROOT, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["without a key"] == 401
    assert seen["job"]["status"] == "succeeded"
    assert seen["after a restart"] == seen["job"]
    ended = {"api": -signal.SIGTERM, "worker-cpu": 0, "redis": 0}  # uvicorn drains, then ends by the signal it was sent
    assert {name: seen["exit statuses"][name] for name in ended} == ended
    assert set(seen["owners"].values()) == {int(IMAGE_USER)}
    assert seen["downloaded"] == ["http://127.0.0.1:9000" if bucket else "http://127.0.0.1:8000"]
    job_id = seen["job"]["id"]
    assert (f"prod/jobs/{job_id}/artifacts/x2/model.safetensors" in seen["bucket"]) is bucket


def _go_through(folder: Path, model: Path, dataset: Path, bucket: bool) -> dict[str, Any]:
    """What a user of docker-compose.yml does, with the commands that the documentation names."""
    import httpx

    from known_core.client import Client

    seen: dict[str, Any] = {}
    names = ("redis", *(["s3"] if bucket else []), "api", "worker-cpu")
    with Containers(compose(VARIABLES | (BUCKET if bucket else {})), folder) as containers:
        for name in names:
            containers.start(name)
        for name in names[1:]:
            containers.wait_healthy(name)
        server = "http://127.0.0.1:8000"
        seen["without a key"] = httpx.get(f"{server}/v1/jobs").status_code
        made = containers.execute("api", "known", "keys", "create", "--tenant", "team-a")
        assert made.returncode == 0, made.stderr
        with Client(server, made.stdout.strip()) as client:
            request = {"model": {"upload_id": client.upload(model), "config": CONFIG},
                       "dataset": {"upload_id": client.upload(dataset)}, **QUICK}  # fmt: skip
            job_id = client.enhance(request)["id"]
            for _ in client.events(job_id):
                pass
            seen["job"] = client.job(job_id).raw
            assert seen["job"]["status"] == "succeeded", client.logs(job_id)
            headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
            listed = httpx.get(f"{server}/v1/jobs/{job_id}/artifacts", headers=headers).json()["data"]
            (file,) = (file for file in listed if file["path"] == "x2/model.safetensors")
            arrived = httpx.get(f"{server}{file['url']}", headers=headers, follow_redirects=True)
            assert hashlib.sha256(arrived.content).hexdigest() == file["sha256"], arrived.text[:500]
            seen["downloaded"] = [f"http://{arrived.url.netloc.decode()}"]
            statuses = {name: containers.stop(name) for name in reversed(names)}
            for name in names[:-1]:
                containers.start(name)
            containers.wait_healthy("api")
            seen["after a restart"] = client.job(job_id).raw
        data = folder / "volumes" / "data"
        stored = folder / "volumes" / "bucket"
        seen["bucket"] = [str(path.relative_to(stored)) for path in stored.rglob("*")]
        seen["owners"] = {str(path.relative_to(data)): path.stat().st_uid for path in data.glob("*")}
    return seen | {"exit statuses": statuses}


if __name__ == "__main__":
    home, weights, images, *options = sys.argv[1:]
    print(json.dumps(_go_through(Path(home), Path(weights), Path(images), "bucket" in options)))
