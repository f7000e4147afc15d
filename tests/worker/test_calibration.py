"""When a machine is calibrated, and how often."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from known_core.device import Device
from known_core.files import sha256_bytes
from tests.devices import TWO_CORES, keep
from worker.calibration import FORMAT, Calibrator, calibration_file
from worker.machine import describe_machine


class Disturbed(Calibrator):
    """Finds the device with these spreads, one after the other."""

    def __init__(self, folder: Path, spreads: list[float], published: list[dict[str, Any]]) -> None:
        super().__init__(folder, {"cores": 2}, published.append)
        self._spreads = spreads

    def _calibrate(self) -> dict[str, Any]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        return {**vars(TWO_CORES), "spread": self._spreads.pop(0)}


def test_a_calibration_that_was_disturbed_is_done_again(tmp_path: Path) -> None:
    published: list[dict[str, Any]] = []
    calibrator = Disturbed(tmp_path, [0.9, 0.5, 0.1, 0.1], published)
    for expected in (0, 0, 1):
        calibrator._round()
        assert len(published) == expected
    assert published[0]["spread"] == 0.1
    assert json.loads(calibration_file(tmp_path, {"cores": 2}).read_text())["spread"] == 0.1


def test_on_a_machine_that_is_never_quiet_the_fifth_counts(tmp_path: Path) -> None:
    published: list[dict[str, Any]] = []
    calibrator = Disturbed(tmp_path, [0.9] * 5, published)
    for _ in range(5):
        calibrator._round()
    assert [found["spread"] for found in published] == [0.9]


def test_one_that_is_kept_is_not_made_again(tmp_path: Path) -> None:
    keep(tmp_path)
    published: list[dict[str, Any]] = []
    Calibrator(tmp_path / "calibrations", describe_machine(), published.append)._round()
    assert [found["calibrated_at"] for found in published] == [TWO_CORES.calibrated_at]


def test_another_machine_or_version_has_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {calibration_file(tmp_path, {"cores": cores, "torch": torch}) for cores in (2, 4) for torch in ("a", "b")}
    monkeypatch.setattr("known_core.__version__", "0.0.0")
    files.add(calibration_file(tmp_path, {"cores": 2, "torch": "a"}))
    assert len(files) == 5


def test_a_format_has_these_fields() -> None:
    """Others make it another format: what is kept of the old one would be taken for no calibration, for good."""
    names = " ".join(sorted(field.name for field in fields(Device)))
    assert (FORMAT, sha256_bytes(names.encode())[:8]) == (2, "ad66d696")
