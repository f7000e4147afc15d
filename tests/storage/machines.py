"""Machines that share nothing but Valkey and a bucket: network namespaces, each with a data folder no other sees.

Run as root inside ``unshare --mount --mount-proc --net --pid --fork``, so nothing outside changes. The bridge between
the machines is this process's own; its ports are isolated, so each machine reaches the bridge's address and no other.
"""

import base64
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
from httpx import Client as Http

from known_core.client import Client
from known_core.files import read_json
from known_core.manifest import verify_manifest
from known_core.stack import _valkey_binary, _valkey_config, _wait_for_port
from tests.chaos.scene import trainers, until
from tests.conftest import SETTINGS, Inputs, ended
from tests.storage.conftest import CREDENTIALS

HERE = "10.9.0.1"
ROOT = Path(__file__).parents[2]
BUCKET, PREFIX = "known", "service"
AWAY_S = 40  # longer than one answer of the bucket is waited for
STORE_PORT, BUCKET_PORT, API_PORT = 6379, 9000, 8000


class Machines:
    """A context in which machines, named by their data folders, run processes.

    Args:
        folder: for the data folders and logs.
        names: of the machines.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ, **SETTINGS, **CREDENTIALS,
            "KNOWN_REDIS_URL": f"redis://:not-a-secret@{HERE}:{STORE_PORT}/0",
            "KNOWN_SECRET_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
            "KNOWN_ACCESS": "keys",
            "KNOWN_TRAINER_PRELOAD": "false",  # a forked process hides its environment, which is looked at
            "KNOWN_RATE_LIMIT": "",
            "KNOWN_STORAGE_URL": f"s3://{BUCKET}/{PREFIX}",
            "KNOWN_STORAGE_ENDPOINT": f"http://{HERE}:{BUCKET_PORT}",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def __enter__(self) -> "Machines":
        _run("mount", "-t", "tmpfs", "run", "/run")  # of iproute2, and no other's
        for link in ("link set lo up", "link add bridge type bridge", f"addr add {HERE}/24 dev bridge",
                     "link set bridge up"):  # fmt: skip
            _run("ip", *link.split())
        for index, name in enumerate(self._names):
            self.data(name).mkdir()
            _run("ip", "netns", "add", name)
            for link in (
                f"link add to-{name} type veth peer name eth0 netns {name}",
                f"link set to-{name} master bridge up",
                f"link set to-{name} type bridge_slave isolated on",
                f"-n {name} addr add {self.address(index)}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            ):
                _run("ip", *link.split())
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self._running[name].terminate()
        for process in self._running.values():
            process.wait(30)

    @staticmethod
    def address(index: int) -> str:
        return f"10.9.0.{index + 2}"

    def data(self, name: str) -> Path:
        return self._folder / name

    def here(self, name: str, command: list[str], stdin: bytes | None = None) -> None:
        """Start what all of them reach."""
        self._start(name, command, stdin)

    def on(self, machine: str, *command: str) -> list[str]:
        """A command that runs on a machine."""
        others = " ".join(f"'{self.data(name)}'" for name in self._names if name != machine)
        hide = f'for other in {others}; do mount -t tmpfs none "$other" || exit; done; exec "$@"'
        return ["ip", "netns", "exec", machine, "sh", "-c", hide, "sh", "env", f"KNOWN_DATA_DIR={self.data(machine)}",
                sys.executable, "-m", *command]  # fmt: skip

    def start(self, machine: str, *command: str) -> None:
        self._start(machine, self.on(machine, *command), None)

    def kill(self, machine: str) -> None:
        """kill -9 of what was started there, and what it started dies with it."""
        process = self._running.pop(machine)
        process.kill()
        process.wait()

    def pause(self, name: str) -> None:
        """It answers nobody any more."""
        psutil.Process(self._running[name].pid).suspend()

    def go_on(self, name: str) -> None:
        psutil.Process(self._running[name].pid).resume()

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, command: list[str], stdin: bytes | None) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            )  # fmt: skip
        if process.stdin is not None:
            with process.stdin as pipe:
                pipe.write(stdin or b"")

    def wait_for_port(self, name: str, port: int) -> None:
        if name == "api":
            until(lambda: _answers(f"http://{self.address(0)}:{port}/healthz"), "the API does not answer", 90)
        else:
            _wait_for_port(port, self._running[name], self._folder / f"{name}.log")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


OPERATOR = ("known_core", "keys", "create", "--tenant", "team-a", "--scope", "read", "--scope", "write")
WORKER = ("celery", "--app", "worker.tasks", "worker", "--loglevel", "INFO")


def go_through(folder: Path, inputs: Inputs) -> dict[str, Any]:
    """A job whose first worker is killed halfway, that another machine finishes though the bucket is away for a while,
    and that a third one publishes; what was seen of it."""
    seen: dict[str, Any] = {}
    with ExitStack() as stack:
        machines = stack.enter_context(Machines(folder, ["api", "first", "second", "third"]))
        (folder / "valkey").mkdir()
        config = _valkey_config(folder, STORE_PORT, "not-a-secret").replace(b"bind 127.0.0.1", b"bind * -::*")
        machines.here("valkey", [_valkey_binary(), "-"], config)
        machines.here("s3", [sys.executable, "-m", "tests.storage.server", "0.0.0.0", str(BUCKET_PORT)])
        for name, port in (("valkey", STORE_PORT), ("s3", BUCKET_PORT)):
            machines.wait_for_port(name, port)
        os.environ.update(CREDENTIALS)
        bucket = boto3.client("s3", endpoint_url=f"http://{HERE}:{BUCKET_PORT}")
        bucket.create_bucket(Bucket=BUCKET)

        def keys(below: str) -> list[str]:
            found = bucket.list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/{below}").get("Contents", [])
            return [item["Key"].removeprefix(f"{PREFIX}/{below}") for item in found]

        def stages() -> list[str]:
            """Of the job, kept in the bucket."""
            return [key.split("/")[0] for key in keys(f"stages/{job_id}/") if key.endswith("/stage.json")]

        def seconds(stage: str) -> float:
            record = bucket.get_object(Bucket=BUCKET, Key=f"{PREFIX}/stages/{job_id}/{stage}/stage.json")
            return float(json.loads(record["Body"].read())["seconds"])

        machines.start("api", "uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--no-access-log")
        machines.start("first", *WORKER)
        machines.wait_for_port("api", API_PORT)
        made = subprocess.run(
            machines.on("api", *OPERATOR),
            cwd=ROOT, env=machines.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        server = f"http://{machines.address(0)}:{API_PORT}"
        client = stack.enter_context(closing(Client(server, made.stdout.strip())))
        job_id = str(client.enhance(inputs.request(client, server))["id"])
        for event in client.events(job_id):
            if event["type"] == "phase" and event["phase"] == "nowcasting":
                break
        (trainer,) = trainers(job_id)
        trainer.suspend()
        environment = trainer.environ()
        assert "TMPDIR" in environment
        seen["secrets of the trainer"] = [
            name for name in environment if name.startswith(("AWS_", "KNOWN_STORAGE", "KNOWN_REDIS", "KNOWN_SECRET"))
        ]
        seen["reaches the api"] = subprocess.run(
            machines.on("first", "tests.storage.machines", "reach", machines.address(0)), cwd=ROOT, check=False,
            env=machines.environment, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        work = machines.data("first") / "jobs" / job_id / "run" / "work"
        until(lambda: set(stages()) == {path.parent.name for path in work.glob("[!.]*/stage.json")} - laid_out(work),
              "finished stages are not kept")  # fmt: skip
        machines.kill("first")
        until(lambda: not trainers(job_id), "the trainer outlived its worker", 10)
        before = {stage: seconds(stage) for stage in stages()}
        machines.pause("s3")
        machines.start("second", *WORKER)
        until(lambda: client.job(job_id)["attempts"] == 2, "nobody takes the job up", 90)
        time.sleep(AWAY_S)
        seen["while the bucket is away"] = client.job(job_id)["status"]
        machines.go_on("s3")
        job = ended(client, job_id)
        seen["log"] = client.logs(job_id)
        seen["status"], seen["attempts"], seen["error"] = job["status"], job["attempts"], job["error"]
        if job["status"] != "succeeded":
            return seen | {"worker": machines.log("second")}
        seen["stages before"] = len(before)
        seen["stages run again"] = [stage for stage, took in before.items() if seconds(stage) != took]
        seen["checkpoints"] = len(client.checkpoints(job_id))
        seen["content"] = client.manifest(job_id)["content_sha256"]
        out = folder / "out"
        seen["downloaded"] = client.download(job_id, out)
        seen["verified"] = verify_manifest(out)
        with Http(base_url=server, headers={"Authorization": f"Bearer {made.stdout.strip()}"}) as http:
            weights = next(entry for entry in client.files(job_id) if entry.path.endswith(".safetensors"))
            answer, head = http.get(weights.url), http.head(weights.url)
            seen["answer"], seen["head"] = answer.status_code, int(head.headers["Content-Length"]) == weights.bytes
            seen["key in the address"] = "Bearer" in answer.headers["Location"]
            seen["report"] = http.get(f"/v1/jobs/{job_id}/report?format=html").status_code
        seen["report in words"] = client.report(job_id).conclusion == read_json(out / "report.json")["conclusion"]
        seen["only its own jobs"] = [path.name for path in (machines.data("api") / "jobs").glob("job_*")]
        machines.kill("second")
        machines.start("third", *WORKER)
        client.republish(job_id, {"repo_id": "someone/somewhere"}, token="hf_none")  # which no machine here reaches
        until(lambda: "publish_error" in client.job(job_id)["result"], "nobody publishes", 120)
        seen["published from"] = verify_manifest(machines.data("third") / "jobs" / job_id / "run" / "artifacts")
        client.delete(job_id)
        seen["left in the bucket"] = keys(f"jobs/{job_id}") + keys(f"stages/{job_id}")
        seen["uploads"] = len([key for key in keys("uploads/") if key.endswith("/upload.json")])
    return seen


def laid_out(work: Path) -> set[str]:
    """The stage that no bucket keeps."""
    return {path.name for path in work.glob("inputs-*")}


if __name__ == "__main__":
    if sys.argv[1] == "reach":
        print(_answers(f"http://{sys.argv[2]}:{API_PORT}/healthz"))
    else:
        given = read_json(Path(sys.argv[2]))
        model, dataset, downstream = (Path(given[name]) for name in ("model", "dataset", "downstream"))
        print(json.dumps(go_through(Path(sys.argv[1]), Inputs(model, given["config"], dataset, downstream))))
