"""The job record as it is read: what the Lua script keeps in Redis, typed."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.jobs.migrations import EVENT_STEPS, JOB_STEPS
from app.jobs.placement import Needs
from known_core.schema import forward


class JobStatus(StrEnum):
    """The closed set of states; app/jobs/states.lua has the legal changes."""

    QUEUED = "queued"
    VALIDATING = "validating"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)


@dataclass(frozen=True)
class Job:
    """One job record. Times are milliseconds since the epoch, on the Redis server's clock."""

    id: str
    tenant: str
    status: JobStatus
    version: int
    attempts: int
    spent_ms: int  # in attempts that have ended
    pausing: bool  # asked for; its worker still has it
    created_at: int
    started_at: int | None
    finished_at: int | None
    phase: str | None
    progress: dict[str, Any] | None
    request: dict[str, Any]
    spec: dict[str, Any]
    hub: dict[str, Any]  # inputs to fetch, name to reference
    republish: dict[str, Any] | None  # where to, while it is asked for and not done
    resolved: dict[str, Any]
    estimate: dict[str, Any] | None  # made when it was queued
    needs: Needs  # of a worker
    waiting_for: str | None  # what no living worker has, when it was last looked at
    request_id: str | None  # of the request that made it
    traceparent: str | None  # of the span that made it
    usage: dict[str, Any] | None  # what its trainer took, the last one that came to an end
    metadata: dict[str, str]
    result: dict[str, Any] | None
    error: dict[str, Any] | None

    @property
    def max_seconds(self) -> int | None:
        """What all attempts together may take."""
        limit: int | None = (self.request.get("limits") or {}).get("max_gpu_seconds")
        return limit


@dataclass(frozen=True)
class JobEvent:
    """One entry of a job's stream; ``id`` is the stream's own and orders events."""

    id: str
    data: dict[str, Any]


def new_job_id() -> str:
    return f"job_{secrets.token_hex(12)}"


def parse_event(entry_id: str, entry: Mapping[str, str]) -> JobEvent:
    """From an entry of the Redis stream. Raises: RecordTooNew."""
    return JobEvent(entry_id, json.loads(forward(entry, EVENT_STEPS, f"event {entry_id}")["data"]))


def parse_job(fields: Mapping[str, str]) -> Job:
    """From the fields of the Redis hash. Raises: RecordTooNew."""
    fields = forward(fields, JOB_STEPS, f"record of the job {fields['id']}")

    def loaded(name: str) -> Any:
        return json.loads(fields[name]) if name in fields else None

    def integer(name: str) -> int | None:
        return int(fields[name]) if name in fields else None

    return Job(
        id=fields["id"],
        tenant=fields["tenant"],
        status=JobStatus(fields["status"]),
        version=int(fields["version"]),
        attempts=int(fields["attempts"]),
        spent_ms=integer("spent_ms") or 0,
        pausing="pause_requested" in fields,
        created_at=int(fields["created_at"]),
        started_at=integer("started_at"),
        finished_at=integer("finished_at"),
        phase=fields.get("phase"),
        progress=loaded("progress"),
        request=loaded("request"),
        spec=loaded("spec"),
        hub=loaded("hub") or {},
        republish=loaded("republish"),
        resolved=loaded("resolved"),
        estimate=loaded("estimate"),
        needs=Needs(**(loaded("needs") or {})),
        waiting_for=fields.get("waiting_for"),
        request_id=loaded("request_id"),
        traceparent=loaded("traceparent"),
        usage=loaded("usage"),
        metadata=loaded("metadata"),
        result=loaded("result"),
        error=loaded("error"),
    )
