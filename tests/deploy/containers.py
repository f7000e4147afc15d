"""docker-compose.yml without docker: each service's own command, user, environment and paths, in namespaces of Linux.

Run as root inside ``unshare --mount --net --pid --fork``: the machine's files are under an overlay, so nothing outside
changes; every service sees its volume at its path, and they find each other by name.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from known_core.stack import _valkey_binary

ROOT = Path(__file__).parents[2]
IMAGE_USER = "10001"  # USER of Dockerfile.gpu; tests/deploy/test_compose.py compares
_USERS = {"redis": "999", "valkey": "999", "s3": "0"}  # of valkey/valkey and rclone/rclone
_VALKEY_CLI = """#!{python}
# In the place of the image's own, which the wheel does not have: as much of it as the health check uses.
import os, redis, sys
print(redis.Redis(password=os.environ["REDISCLI_AUTH"]).execute_command(*sys.argv[1:]))
"""
_VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """docker-compose.yml with its variables filled in (Compose specification, interpolation)."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == "-":
            return str(rest)
        raise KeyError(f"{name}: {rest or 'is not set'}")

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: filled(each) for name, each in part.items()}
        if isinstance(part, list):
            return [filled(each) for each in part]
        return _VARIABLE.sub(value, part) if isinstance(part, str) else part

    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    read: dict[str, Any] = filled(yaml.safe_load(text))
    return read


def user_of(name: str) -> str:
    """The uid of a service."""
    return _USERS.get(name, IMAGE_USER)


class Containers:
    """A context in which services run. Needs root, in namespaces of its own.

    Args:
        folder: for the overlay, the volumes and the logs.
    """

    def __init__(self, read: Mapping[str, Any], folder: Path) -> None:
        self._services: dict[str, Any] = read["services"]
        self._folder, self._root = folder, folder / "overlay" / "merged"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Containers":
        overlay = self._folder / "overlay"
        overlay.mkdir()
        _run("mount", "--make-rprivate", "/")
        _run("mount", "-t", "tmpfs", "overlay", str(overlay))
        for name in ("upper", "work", "merged"):
            (overlay / name).mkdir()
        layers = f"lowerdir=/,upperdir={overlay}/upper,workdir={overlay}/work"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, str(self._root))
        for name in ("proc", "dev", "sys"):
            _run("mount", "--rbind", f"/{name}", str(self._root / name))
        _run("ip", "link", "set", "lo", "up")
        (self._root / "root").chmod(0o755)  # this machine's Python may be in root's home; in the image it is not
        names = " ".join(["localhost", *self._services])
        (self._root / "etc" / "hosts").write_text(f"127.0.0.1 {names}\n")
        binaries = self._root / "usr" / "local" / "bin"
        (binaries / "valkey-server").unlink(missing_ok=True)
        (binaries / "valkey-server").symlink_to(_valkey_binary())
        (binaries / "valkey-cli").write_text(_VALKEY_CLI.format(python=sys.executable))
        (binaries / "valkey-cli").chmod(0o755)
        for service in self._services.values():
            for volume in service["volumes"]:
                (self._root / volume.partition(":")[2].removeprefix("/")).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)

    def start(self, name: str) -> None:
        """As `docker compose up`: once everything that it depends on is healthy."""
        for other, wanted in self._services[name].get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}
            self.wait_healthy(other)
        service = self._services[name]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._command(name, [*service.get("entrypoint", []), *service["command"]]),
                env=self._environment(name), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def stop(self, name: str) -> int:
        """As `docker compose stop`: TERM, and the service's own time to end in. Returns: its exit status."""
        process = self._running.pop(name)
        process.terminate()
        return process.wait(float(str(self._services[name].get("stop_grace_period", "10s")).removesuffix("s")))

    def wait(self, name: str, patience_s: float) -> int:
        """Until a service has ended by itself. Returns: its exit status."""
        return self._running.pop(name).wait(patience_s)

    def execute(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """As `docker compose exec`."""
        return subprocess.run(
            self._command(name, list(command)), env=self._environment(name), capture_output=True, text=True, check=False
        )

    def wait_healthy(self, name: str, patience_s: float = 90) -> None:
        kind, *command = self._services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        deadline = time.monotonic() + patience_s
        while (asked := self.execute(name, *command)).returncode != 0:
            log = (self._folder / f"{name}.log").read_text()
            assert self._running[name].poll() is None, log
            assert time.monotonic() < deadline, f"{name} is not healthy: {asked.stderr}\n{log}"
            time.sleep(0.5)

    def _command(self, name: str, command: list[str]) -> list[str]:
        """In the overlay, with the service's volume at its path, as its user, without capabilities."""
        (volume,) = self._services[name]["volumes"]
        source, target = volume.split(":")
        user = user_of(name)
        place = self._folder / "volumes" / source
        if not place.exists():
            place.mkdir(parents=True)
            os.chown(place, int(user), int(user))
        drop = [
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set",
            "-all",
        ]
        script = f'mount --bind "{place}" "{self._root}{target}" && exec chroot "{self._root}" "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *drop, "--", "env", f"--chdir={target}", *command]

    def _environment(self, name: str) -> dict[str, str]:
        image = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        return {**image, **{key: str(value) for key, value in self._services[name].get("environment", {}).items()}}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
