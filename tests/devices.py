"""A calibration as a worker finds it: that of a machine with two cores (docs/estimate.md), for tests that need one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from known_core.costs import KINDS
from known_core.device import Device
from known_core.files import write_json
from worker.calibration import calibration_file
from worker.machine import describe_machine

TWO_CORES = Device(
    name="AMD EPYC, 2 cores", type="cpu", calibrated_at="2026-11-26T16:46:28Z",
    versions={"known": "0.1.0", "torch": "2.14.1"}, precision="float32",
    training=dict(zip(KINDS, (5.7e-5, 3.3e-4, 1.2e-11, 6.6e-11, 1.7e-11, 1.4e-11, 0, 2.5e-10, 1.8e-10), strict=True)),
    inference=dict(zip(KINDS, (4.3e-5, 2.2e-4, 1.2e-11, 1.3e-10, 1.5e-11, 1.5e-10, 0, 3.9e-11, 6e-11), strict=True)),
    spread=0.1, training_call=0.24, step=3.9e-3, example=1.9e-5, tensor=9.6e-5, weight=4.7e-9, mean_tensor=4.7e-5,
    mean_weight=2.3e-9, load_call=5.1e-4, load_tensor=1.1e-4, load_weight=6.6e-9, model_call=9.2e-3,
    model_tensor=4.9e-4, image=3e-4, image_in=2.6e-8, image_out=1.6e-8, text=3.2e-5, character=3.8e-7,
    nowcast=3.4e-8, figure=0.035, hash_byte=8.1e-10,
    write_byte=2.3e-9, file=2.4e-4, start=8.5, memory_bytes=1_150_484_480, accelerator_bytes=0,
)  # fmt: skip


def scaled(device: Device, factor: float) -> Device:
    """One that takes ``factor`` times as long for everything."""
    changed: dict[str, Any] = {
        name: {kind: rate * factor for kind, rate in getattr(device, name).items()}
        for name in ("training", "inference")
    }
    for name, value in vars(device).items():
        if isinstance(value, float) and name != "spread":
            changed[name] = value * factor
    return replace(device, **changed)


def keep(data_dir: Path, device: Device = TWO_CORES) -> None:
    """Put it where a worker of this data folder looks for the calibration of this machine."""
    write_json(calibration_file(data_dir / "calibrations", describe_machine()), vars(device))
