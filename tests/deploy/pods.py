"""deploy/kubernetes as it is written: its resources, and its pods as services of :mod:`tests.deploy.containers`."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy.containers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.37"  # of Kubernetes, whose schemas are checked against
Resource = dict[str, Any]


def resources() -> list[Resource]:
    """What the base is made of, without what kustomize generates."""
    named = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"]
    return [found for name in named for found in yaml.safe_load_all((FOLDER / "base" / name).read_text())]


def lint(found: Resource) -> None:
    """Raises: ValidationError, of kubernetes_validate or jsonschema, where a field is unknown, missing or of a wrong
    type."""
    if not found["apiVersion"].startswith("keda.sh/"):
        kubernetes_validate.validate(found, VERSION, strict=True)
        return
    schema = json.loads((FOLDER / "schemas" / f"keda.sh_{found['kind'].lower()}.json").read_text())
    jsonschema.validate(found, schema)
    if found["kind"] == "ScaledJob":
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": found["spec"]["jobTargetRef"]}
        kubernetes_validate.validate(job, VERSION, strict=True)


def pods() -> dict[str, Resource]:
    """The pod of each workload, by its name."""
    found = {}
    for resource in resources():
        spec = resource.get("spec", {})
        template = spec.get("jobTargetRef", spec).get("template")
        if template is not None:
            found[resource["metadata"]["name"]] = template["spec"]
    return found


def literals() -> dict[str, str]:
    """The ConfigMap that kustomize generates."""
    (generated,) = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    return dict(entry.split("=", 1) for entry in generated["literals"])


def secret_names() -> set[str]:
    """What known.env has to say."""
    return set(re.findall(r"^(\w+)=", (FOLDER / "known.env.example").read_text(), flags=re.MULTILINE))


def containers_of(pod: Resource) -> Iterator[Resource]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def environment(container: Resource, secret: Mapping[str, str]) -> dict[str, str]:
    """As the kubelet makes it, in its order: envFrom, then env."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= literals() if "configMapRef" in source else secret
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        found[entry["name"]] = secret[reference["key"]] if reference else entry["value"]
    return found


def services(secret: Mapping[str, str], idle_s: float) -> dict[str, Any]:
    """The pods, with one disk in the place of the bucket, in the words of docker-compose.yml.

    Args:
        secret: what known.env says.
        idle_s: in the place of the minute after which a worker ends.
    """
    found = {}
    for name, pod in pods().items():
        (container,) = pod["containers"]
        said = environment(container, secret)
        if "KNOWN_EXIT_WHEN_IDLE_SECONDS" in said:
            said["KNOWN_EXIT_WHEN_IDLE_SECONDS"] = str(idle_s)
        command = [_expanded(part, said) for part in container["command"]]
        volume = "store:/data" if name == "valkey" else "data:/data"
        found[name] = {
            "command": command, "environment": said, "volumes": [volume], "healthcheck": {"test": _probe(container)},
            "stop_grace_period": f"{pod['terminationGracePeriodSeconds']}s",
        }  # fmt: skip
    return {"services": found}


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)


def _probe(container: Resource) -> list[str]:
    probe = container.get("readinessProbe") or container["livenessProbe"]
    if "exec" in probe:
        return ["CMD", *probe["exec"]["command"]]
    script = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000{}', timeout=5)"
    return ["CMD", "python", "-c", script.format(probe["httpGet"]["path"])]


def kustomized(overlay: Path, kubectl: str, folder: Path) -> list[Resource]:
    """What ``kubectl kustomize`` makes of an overlay, in a copy that has a known.env."""
    copy = folder / "kubernetes"
    shutil.copytree(FOLDER, copy, dirs_exist_ok=True)
    shutil.copy(copy / "known.env.example", copy / "base" / "known.env")
    made = subprocess.run(
        [kubectl, "kustomize", copy / overlay.relative_to(FOLDER)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))
