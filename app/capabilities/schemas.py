"""What an answer about the service looks like."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class WorkerView(BaseModel):
    """A worker and its machine, as it last said itself."""

    name: str
    queues: list[str] = Field([], description="that it serves: gpu, cpu, control")
    gpus: list[str]
    cores: int | None
    torch: str
    calibrated_at: str | None = Field(None, description="when its device was, for estimates; null: not yet")


class ServiceLimits(BaseModel):
    max_upload_bytes: int
    max_dataset_bytes: int
    max_attempts: int
    max_wait_seconds: int
    job_retention_days: float = Field(description="0: jobs are kept for ever")


class Capabilities(BaseModel):
    object: Literal["capabilities"] = "capabilities"
    version: str
    access: Literal["open", "keys"] = Field(description="open: this machine only, without a key; keys: an API key")
    tasks: list[str]
    libraries: list[str] = Field(description="whose architectures are taken; any other: a trajectory")
    hypermodels: list[str]
    engines: list[str] = Field(description="what can compute predictions, where a worker's machine has it")
    workers: list[WorkerView]
    limits: ServiceLimits


CAPABILITIES_EXAMPLE: dict[str, Any] = {
    "object": "capabilities",
    "version": "0.1.0",
    "access": "open",
    "tasks": ["image-classification", "text-classification"],
    "libraries": ["peft", "registered", "timm", "torchvision", "transformers"],
    "hypermodels": ["known-paper", "known-v1"],
    "engines": ["eager", "cpu", "triton"],
    "workers": [
        {
            "name": "gpu-1:7",
            "queues": ["gpu", "control"],
            "gpus": ["NVIDIA L4"],
            "cores": 8,
            "torch": "2.9.0",
            "calibrated_at": "2026-11-24T09:58:12Z",
        }
    ],
    "limits": {
        "max_upload_bytes": 21474836480,
        "max_dataset_bytes": 53687091200,
        "max_attempts": 3,
        "max_wait_seconds": 60,
        "job_retention_days": 30,
    },
}
