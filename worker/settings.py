"""Settings of the workers."""

import os
from typing import Literal

from pydantic import Field, field_validator

from app.jobs.placement import CONTROL, CPU, GPU, QUEUES, Queue
from app.jobs.settings import StoreSettings


class WorkerSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    queues: str = Field(
        "", description="that it serves, by commas; empty: gpu,control where the driver lists a GPU, else cpu,control"
    )
    exit_when_idle_seconds: float = Field(
        0.0, ge=0, description="a worker that did nothing for so long ends itself, with status 0; 0: never"
    )
    heartbeat_seconds: float = Field(10, gt=0, description="between two renewals of a lease")
    reap_seconds: float = Field(15, gt=0, description="between two looks for lost jobs")
    sweep_seconds: float = Field(600, gt=0, description="between two rounds of removing what nobody needs")
    work_retention_hours: float = Field(
        24, ge=0, description="the finished stages of a job are removed so long after it has ended"
    )
    team_size: int = Field(
        0, ge=0, description="processes that train a job's stages together; 0: one for each GPU, one on a CPU"
    )
    team_sharding: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="fsdp: each of them holds a part of the network; auto: where one GPU does not hold it"
    )
    nowcast_helpers: int = Field(0, ge=0, description="other workers that a job asks to write shards of its nowcast")
    isolation: Literal["auto", "required", "off"] = Field(
        "auto", description="of the processes that read a stranger's files; required: run no job where any is lacking"
    )
    trainer_uids: int = Field(
        1_900_000_000, ge=1, description="where the worker is root: the first of the 16.7 million uids that jobs run as"
    )
    trainer_reads: str = Field("", description="more folders that a trainer may read, separated by colons")
    trainer_file_bytes: int = Field(1 << 40, ge=0, description="of one file that a job writes; 0: no limit")
    trainer_memory_bytes: int = Field(0, ge=0, description="that each process of a job may allocate; 0: no limit")
    trainer_processes: int = Field(4096, ge=0, description="processes and threads of the trainer's user; 0: no limit")
    trainer_preload: bool = Field(
        True, description="fork trainers from a process that has imported all they need: seconds sooner, for its memory"
    )
    calibrate: bool = Field(True, description="measure this machine once, for estimates of jobs: about half a minute")
    webhook_seconds: float = Field(2, gt=0, description="between two looks for webhooks to deliver")
    webhook_retry_scale: float = Field(1, ge=0, description="multiplies the waits between attempts at a webhook")
    kill_grace_seconds: float = Field(30, ge=0, description="between TERM and KILL of a trainer that is to stop")

    @field_validator("queues")
    @classmethod
    def _control_and_one_device(cls, given: str) -> str:
        named = {name.strip() for name in given.split(",")}
        if given and (not named <= set(QUEUES) or CONTROL not in named or {GPU, CPU} <= named):
            raise ValueError(
                f"KNOWN_QUEUES is {given!r}: give gpu,control or cpu,control, or control alone; "
                "where a machine is to serve both devices, start a worker for each"
            )
        return given

    def served(self, has_gpu: bool) -> tuple[Queue, ...]:
        """The queues, the first one first.

        Args:
            has_gpu: whether the machine has one.
        """
        asked = [name.strip() for name in self.queues.split(",")] if self.queues else [GPU if has_gpu else CPU, CONTROL]
        return tuple(queue for queue in QUEUES if queue in asked)

    def has_teams(self, gpus: int) -> bool:
        """Whether several processes may train a job's stages together here.

        Args:
            gpus: how many the machine has.
        """
        return self.team_size > 1 or (self.team_size == 0 and gpus > 1)

    def gpus_of_a_network(self, gpus: int) -> int:
        """Over how many of them a network may be spread; isolation lets root's processes alone talk to one another."""
        alone = self.isolation != "off" and os.geteuid() != 0
        return 1 if alone or self.team_sharding == "ddp" else max(1, self.team_size or gpus)
