"""deploy/kubernetes: valid for Kubernetes and KEDA, true to the code and to docker-compose.yml; its commands run."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from app.jobs.queue import make_celery
from app.jobs.repository import connect
from app.settings import AppSettings
from known_core.stack import Stack
from tests.conftest import CONFIG, QUICK, Inputs
from tests.deploy.containers import ROOT, Containers, compose, user_of
from tests.deploy.pods import (
    FOLDER,
    Resource,
    containers_of,
    environment,
    kustomized,
    lint,
    literals,
    pods,
    resources,
    secret_names,
    services,
)
from tests.deploy.test_compose import VARIABLES
from worker.settings import WorkerSettings

BASE = resources()
OVERLAYS = [FOLDER / "base", *sorted((FOLDER / "overlays").iterdir())]
SECRET = {
    **dict.fromkeys(secret_names(), ""),
    "REDIS_PASSWORD": "not-a-secret",
    "KNOWN_REDIS_URL": "redis://:not-a-secret@valkey:6379/0",
    "KNOWN_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
}


def name_of(resource: Resource) -> str:
    return f"{resource['kind']}-{resource['metadata']['name']}"


@pytest.mark.parametrize("resource", BASE, ids=name_of)
def test_every_resource_is_valid(resource: Resource) -> None:
    lint(resource)


@pytest.mark.parametrize("resource", BASE, ids=name_of)
def test_a_field_that_does_not_exist_is_found(resource: Resource) -> None:
    """The linter's own test: nothing is passed over."""
    wrong = json.loads(json.dumps(resource))
    wrong.get("spec", wrong["metadata"])["replicsa"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        lint(wrong)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kustomize comes with kubectl")
def test_what_kustomize_makes_is_valid(overlay: Path, tmp_path: Path) -> None:
    made = kustomized(overlay, shutil.which("kubectl") or "", tmp_path)
    for resource in made:
        lint(resource)
    kinds = [name_of(resource) for resource in made]
    assert {"Secret-known", "ConfigMap-known", "Deployment-known-api", "ScaledJob-known-cpu"} <= set(kinds)
    assert ("ScaledJob-known-gpu" in kinds) == (overlay.name != "cpu")
    assert ("StatefulSet-valkey" in kinds) == (overlay.name != "own-store")


def test_settings_that_are_named_exist() -> None:
    fields = {f"KNOWN_{name.upper()}" for settings in (AppSettings, WorkerSettings) for name in settings.model_fields}
    named = secret_names() | set(literals())
    for pod in pods().values():
        for container in containers_of(pod):
            named |= {entry["name"] for entry in container.get("env", [])}
    assert {name for name in named if name.startswith("KNOWN_")} <= fields


def test_settings_have_values_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for pod in pods().values():
        for name, value in environment(pod["containers"][0], SECRET).items():
            monkeypatch.setenv(name, value)
        if "worker.tasks" in pod["containers"][0]["command"]:
            assert WorkerSettings().isolation == "required"
        elif "uvicorn" in pod["containers"][0]["command"]:
            assert AppSettings().access == "keys"


def test_commands_and_images_are_those_of_compose() -> None:
    composed = compose(VARIABLES)["services"]
    twins = {"valkey": "redis", "known-api": "api", "known-uploads": "api", "known-control": "worker",
             "known-gpu": "worker", "known-cpu": "worker-cpu"}  # fmt: skip
    assert set(pods()) == set(twins)
    ours = services(SECRET, 60)["services"]
    for name, pod in pods().items():
        twin = composed[twins[name]]
        assert pod["containers"][0]["image"] == twin["image"]
        assert ours[name]["command"] == twin["command"]
        grace_s = int(twin.get("stop_grace_period", "10s").removesuffix("s"))
        pause_s = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] >= grace_s + pause_s
    for name in ("known-gpu", "known-cpu"):
        assert ours[name]["healthcheck"]["test"] == composed["worker"]["healthcheck"]["test"]


def test_a_worker_has_the_time_that_it_needs_to_let_go() -> None:
    celery = make_celery("redis://127.0.0.1:1/0")
    for name in ("known-gpu", "known-cpu", "known-control"):
        needed_s = max(WorkerSettings().kill_grace_seconds, celery.conf.worker_soft_shutdown_timeout)
        assert pods()[name]["terminationGracePeriodSeconds"] > needed_s


def test_no_pod_has_a_privilege_or_a_file_system_to_write_in() -> None:
    for name, pod in pods().items():
        user = int(user_of(name))
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # KNOWN_API_PORT and others would look like settings
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, user, user)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"requests", "limits"} <= set(container["resources"])
            places = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert places >= ({"/data"} if name == "valkey" else {"/data", "/tmp"})


def test_selectors_find_their_pods() -> None:
    """Of Services, budgets, policies and the Ingress."""
    labels = {}
    for resource in BASE:
        spec = resource.get("spec", {})
        template = spec.get("jobTargetRef", spec).get("template")
        if template is not None:
            labels[resource["metadata"]["name"]] = template["metadata"]["labels"]
    by_name = {name_of(resource): resource["spec"] for resource in BASE if "spec" in resource}
    for key, spec in by_name.items():
        if key.startswith("Service-"):
            assert spec["selector"].items() <= labels[key.removeprefix("Service-")].items()
    paths = by_name["Ingress-known"]["rules"][0]["http"]["paths"]
    backends = {path["path"]: path["backend"]["service"]["name"] for path in paths}
    assert backends == {"/v1/uploads": "known-uploads", "/": "known-api"}
    assert by_name["PodDisruptionBudget-known-api"]["selector"]["matchLabels"] == {"app": "known-api"}
    ours = by_name["NetworkPolicy-out"]["podSelector"]["matchLabels"]
    assert {name for name, found in labels.items() if ours.items() <= found.items()} == set(labels) - {"valkey"}


def test_keda_reads_the_lists_that_the_workers_read(tmp_path: Path) -> None:
    """A message that Celery sends to a worker's queue lies in the list whose length its ScaledJob is given."""
    scaled = {found["metadata"]["name"]: found["spec"] for found in BASE if found["kind"] == "ScaledJob"}
    assert set(scaled) == {"known-gpu", "known-cpu"}
    with Stack(tmp_path, port=0, workers=0) as stack:
        store: Any = connect(stack.store_url)
        for name, spec in scaled.items():
            (trigger,) = spec["triggers"]
            queue, control = environment(pods()[name]["containers"][0], SECRET)["KNOWN_QUEUES"].split(",")
            assert (name, control) == (f"known-{queue}", "control")
            make_celery(stack.store_url).send_task("test", queue=queue)
            assert store.llen(trigger["metadata"]["listName"]) == int(trigger["metadata"]["listLength"]) == 1
            assert trigger["authenticationRef"] == {"name": "known-store"}
    host, port = re.fullmatch(r"(\w+)\.known\.svc:(\d+)", trigger["metadata"]["address"]).groups()  # type: ignore[union-attr]
    assert f"@{host}:{port}/" in SECRET["KNOWN_REDIS_URL"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and an overlay need root")
def test_every_command_runs_and_a_job_goes_through(tmp_path: Path, inputs: Inputs) -> None:
    """In namespaces of their own: see :mod:`tests.deploy.containers`. The API's pods have one command."""
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, sys.executable, "-m", "tests.deploy.test_kubernetes", tmp_path, inputs.model, inputs.dataset],
        cwd=ROOT, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["job"]["status"] == "succeeded"
    assert seen["job"]["attempts"] == 1
    assert seen["worker's own end"] == 0


def _go_through(folder: Path, model: Path, dataset: Path) -> dict[str, Any]:
    """What KEDA and a client do."""
    from known_core.client import Client

    seen: dict[str, Any] = {}
    with Containers(services(SECRET, idle_s=5), folder) as containers:
        containers.start("valkey")
        containers.wait_healthy("valkey")
        for name in ("known-api", "known-control"):
            containers.start(name)
        for name in ("known-api", "known-control"):
            containers.wait_healthy(name)
        key = containers.execute("known-api", "known", "keys", "create", "--tenant", "team-a").stdout.strip()
        with Client("http://127.0.0.1:8000", key) as client:
            request = {"model": {"upload_id": client.upload(model), "config": CONFIG},
                       "dataset": {"upload_id": client.upload(dataset)}, **QUICK}  # fmt: skip
            job_id = client.enhance(request)["id"]
            containers.start("known-cpu")
            for _ in client.events(job_id):
                pass
            seen["job"] = client.job(job_id).raw
            assert seen["job"]["status"] == "succeeded", client.logs(job_id)
        seen["worker's own end"] = containers.wait("known-cpu", 60)
    return seen


if __name__ == "__main__":
    print(json.dumps(_go_through(*map(Path, sys.argv[1:]))))
