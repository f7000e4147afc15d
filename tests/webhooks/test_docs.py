"""The receiver of docs/webhooks.md, run as its reader runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.webhooks.record import DeliveryStatus
from known_core.stack import _free_port, _wait_for_port
from tests.webhooks.conftest import Bench

PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"


@pytest.mark.parametrize("right", [True, False])
def test_the_documented_receiver_verifies(bench: Bench, tmp_path: Path, right: bool) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "receiver.py").write_text(code)
    port, log = _free_port(), tmp_path / "log"
    secret = bench.secret("local" if right else "another")
    with log.open("w") as stream:
        receiver = subprocess.Popen(
            [sys.executable, str(tmp_path / "receiver.py")], stdout=stream, stderr=stream,
            env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
        )  # fmt: skip
    try:
        _wait_for_port(port, receiver, log)
        delivery_id = bench.end_job(f"http://127.0.0.1:{port}/")
        bench.courier(scale=1).look()
    finally:
        receiver.terminate()
        receiver.wait()
    delivery = bench.delivery(delivery_id)
    assert [attempt.status for attempt in delivery.attempts] == [204 if right else 400]
    assert delivery.status is (DeliveryStatus.DELIVERED if right else DeliveryStatus.PENDING)
    assert (f"{delivery_id} job.succeeded {delivery.job_id}" in log.read_text()) == right
