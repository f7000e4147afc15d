"""A worker as it is, but for the trainer: the stub is in its place. ``celery --app tests.fleet.tasks worker``."""

import os
from typing import Any

import worker.supervisor
from tests.fleet.stub import SECONDS
from worker.processes import Process, start
from worker.tasks import celery


def _stub(command: list[str], *arguments: Any, **options: Any) -> Process:
    if command[0] == "worker.trainer":
        command = ["tests.fleet.stub", *command[1:], os.environ[SECONDS]]
    return start(command, *arguments, **options)


worker.supervisor.start = _stub  # type: ignore[attr-defined]
celery.conf.imports = [__name__]  # the pool's process, which starts the trainers, imports this as well
__all__ = ["celery"]
