"""This machine's device, calibrated once: in a process of its own, while the worker has nothing else to do."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import known_core
from known_core.files import canonical_json, read_json, sha256_bytes, write_json
from known_core.processes import die_with_parent
from worker.isolation import import_path
from worker.periodic import Periodic

_log = logging.getLogger(__name__)
FORMAT = 2  # of known_core.device.Device: another one where it has other fields, or they mean something else
_AGAIN_S = 60.0
_TRIES = 5
_LONGEST_S = 300.0
_STEADY = 0.35  # of Device.spread: on a machine that does other things meanwhile it is 0.5 and more


class Calibrator(Periodic):
    """A thread that calibrates, unless that was done before, and tries again where something disturbed it.

    Args:
        folder: where calibrations are kept, one for each machine and versions.
        machine: what the machine says of itself (:mod:`worker.machine`).
        publish: given the calibration.
    """

    def __init__(self, folder: Path, machine: Mapping[str, Any], publish: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(_AGAIN_S, self._round, name="calibrator")
        self._file = calibration_file(folder, machine)
        self._publish = publish
        self._tries = 0

    def _round(self) -> None:
        if not self._file.is_file():
            self._tries += 1
            if self._tries > _TRIES:
                _log.warning("there will be no estimates from this worker")
                self.stop()
                return
            found = self._calibrate()
            if found["spread"] > _STEADY and self._tries < _TRIES:
                _log.info("the calibration was disturbed (spread %.2f); it will be tried again", found["spread"])
                return
            write_json(self._file, found)
        self._publish(read_json(self._file))
        self.stop()

    def _calibrate(self) -> dict[str, Any]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "known_core.device", str(self._file.parent)],
            env={"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **os.environ,
                 "PYTHONPATH": import_path()},
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_LONGEST_S,
            preexec_fn=die_with_parent,  # it imports torch for seconds before it could ask for that itself
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"no calibration, so no estimates: {done.stderr.strip()[-1000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def calibration_file(folder: Path, machine: Mapping[str, Any]) -> Path:
    """Where the calibration of this machine with these versions is kept."""
    facts = {**machine, "known": known_core.__version__, "host": socket.gethostname(), "format": FORMAT}
    return folder / f"{sha256_bytes(canonical_json(facts))[:16]}.json"
