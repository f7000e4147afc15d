"""What a worker says of the machine it is on, found out without loading torch."""

import os
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from typing import Any


@cache
def describe_machine() -> dict[str, Any]:
    """Its GPUs by name (those the driver lists), its cores, and the version of torch that jobs run with."""
    return {"gpus": _gpus(), "cores": os.cpu_count(), "torch": version("torch")}


def _gpus() -> list[str]:
    """Empty where there is no driver, or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        asked = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()]
