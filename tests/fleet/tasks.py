"""A worker as it is, but for the trainer: the stub is in its place. ``celery --app tests.fleet.tasks worker``."""

import os
import subprocess
from typing import Any

import worker.supervisor
from tests.fleet.stub import SECONDS
from worker.tasks import celery

_start = worker.supervisor._start


def _stub(command: list[str], *arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
    if command[0] == "worker.trainer":
        command = ["tests.fleet.stub", *command[1:], os.environ[SECONDS]]
    return _start(command, *arguments, **options)


worker.supervisor._start = _stub
celery.conf.imports = [__name__]  # the pool's process, which starts the trainers, imports this as well
__all__ = ["celery"]
