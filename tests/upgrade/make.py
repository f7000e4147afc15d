"""What a release leaves behind, made by running that release: ``python -m tests.upgrade.make COMMIT NAME``.

The commit is checked out beside, its service is started from there, and does a small job to its end, another until it
is paused between two stages, and takes a third that no worker begins. The store's keys and the data folder are packed
into ``tests/upgrade/data/NAME.tar.xz``. Run it with the code that is about to be replaced, before the new one lands.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = "{data}"  # stands for the data folder in what the store holds
STORE = "store.json"
_LEFT_OUT = ("valkey", "logs", "hub", "stack.lock", "secret.key")
_SETTINGS = {"KNOWN_CALIBRATE": "false", "KNOWN_MIN_FREE_BYTES": "0", "OMP_WAIT_POLICY": "PASSIVE"}
CONFIG = {"architecture": "small-cnn", "num_classes": 5, "in_chans": 1, "img_size": 8, "width": 4,
          "label_names": ["0", "1", "2", "3", "4"]}  # fmt: skip
QUICK: dict[str, Any] = {
    "forgetting": {"epochs_per_stage": 1, "learning_rate": 1e-3, "batch_size": 32},
    "nowcast": {"controls": []},
    "evaluation": {"seeds": 3, "probe_examples": 20, "probe_epochs": 1, "probe_learning_rates": [1e-3]},
}


def main(commit: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree, data = Path(folder) / "tree", Path(folder) / "data"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", tree, commit], check=True)
        try:
            environment = {**os.environ, **_SETTINGS, "PYTHONPATH": str(tree)}
            subprocess.run([sys.executable, "-P", Path(__file__), "--run", data], env=environment, check=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
        _pack(data, ROOT / "tests" / "upgrade" / "data" / f"{name}.tar.xz")


def run(data: Path) -> None:
    """In the release's own process: its code is what is imported here."""
    import httpx
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from known_core.client import Client
    from known_core.models.registered import build_registered
    from known_core.sample_data import load_sample, write_imagefolder
    from known_core.stack import Stack

    inputs = data.parent
    digits = load_sample("digits").of_classes([0, 1, 2, 3, 4])
    order = np.random.default_rng(0).permutation(800)
    write_imagefolder(inputs / "data.zip", digits.take(order[:80]), digits.take(order[80:120]))
    torch.manual_seed(0)
    save_file(build_registered(CONFIG).state_dict(), inputs / "model.safetensors", metadata={"format": "pt"})
    facts: dict[str, Any] = {}
    with Stack(data, port=0) as stack, Client(stack.url) as client:
        request = {
            "model": {"upload_id": client.upload(inputs / "model.safetensors"), "config": CONFIG},
            "dataset": {"upload_id": client.upload(inputs / "data.zip")},
            "metadata": {"made": "by the release before"},
            **QUICK,
        }
        facts["uploads"] = [request["model"]["upload_id"], request["dataset"]["upload_id"]]
        facts["succeeded"] = str(client.enhance(request)["id"])
        for _ in client.events(facts["succeeded"]):
            pass
        status = client.job(facts["succeeded"])["status"]
        assert status == "succeeded", client.logs(facts["succeeded"])
        service = httpx.Client(base_url=f"{stack.url}/v1/jobs/", timeout=30)
        facts["content_sha256"] = service.get(f"{facts['succeeded']}/manifest").json()["content_sha256"]
        facts["paused"] = str(client.enhance(request)["id"])
        for event in client.events(facts["paused"]):
            if event["type"] == "phase" and event["phase"] == "forgetting" and event["detail"].startswith("3"):
                client.pause(facts["paused"])
            if event.get("status") == "paused":
                break
        stack.stop_one("worker")
        facts["queued"] = str(client.enhance(request)["id"])
        facts["events"] = {
            job: [event["data"] for event in service.get(f"{facts[job]}/events").json()["data"]]
            for job in ("succeeded", "queued")
        }
        dumped = _dump(stack.store_url)
    text = json.dumps(dumped).replace(str(data.resolve()), DATA)
    (data / STORE).write_text(json.dumps({"facts": facts, "keys": json.loads(text)}, indent=1))


def _dump(url: str) -> dict[str, Any]:
    """Every key that stays, by type: what REST of it needs to be written again."""
    from redis import Redis

    store: Any = Redis.from_url(url, decode_responses=True)
    readers = {
        "string": store.get,
        "hash": store.hgetall,
        "set": lambda key: sorted(store.smembers(key)),
        "zset": lambda key: store.zrange(key, 0, -1, withscores=True),
        "list": lambda key: store.lrange(key, 0, -1),
        "stream": store.xrange,
    }
    found = {}
    for key in sorted(store.scan_iter(count=1000)):
        kind = store.type(key)
        if kind != "none" and store.ttl(key) == -1:
            found[key] = [kind, readers[kind](key)]
    return found


def _pack(data: Path, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        parts = Path(member.name).parts
        return None if parts[0] in _LEFT_OUT else member

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for path in sorted(data.iterdir()):
            tar.add(path, path.name, filter=plain)
    archive.write_bytes(packed.getvalue())
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
