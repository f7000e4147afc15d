"""What a worker says of the machine it is on, found out without loading torch."""

import os
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


@cache
def describe_machine() -> dict[str, Any]:
    """Its GPUs by name (those the driver lists), its cores, and the version of torch that jobs run with."""
    return {"gpus": _gpus(), "cores": os.cpu_count(), "torch": version("torch")}


def describe_load() -> dict[str, Any]:
    """What of its memory and of its GPUs is in use now."""
    gpus = []
    for line in _ask_driver("index,name,memory.used,memory.total,utilization.gpu"):
        index, name, used, total, busy = (value.strip() for value in line.split(","))
        mebibytes = [int(value) << 20 if value.isdigit() else 0 for value in (used, total)]  # "[N/A]" where unknown
        gpus.append({"index": int(index), "name": name, "used": mebibytes[0], "total": mebibytes[1],
                     "utilization": int(busy) / 100 if busy.isdigit() else 0.0})  # fmt: skip
    return {"memory": _memory(), "gpus": gpus}


def _memory() -> dict[str, int]:
    """proc_meminfo(5); empty where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
    return {"used": found["MemTotal"] - found["MemAvailable"], "total": found["MemTotal"]}


def _gpus() -> list[str]:
    return _ask_driver("name")


def _ask_driver(fields: str) -> list[str]:
    """A line for each GPU that CUDA_VISIBLE_DEVICES leaves; none where there is no driver, or it does not answer."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or visible == "":
        return []
    chosen = [f"--id={visible}"] if visible is not None and "MIG" not in visible else []
    command = [tool, *chosen, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()]
