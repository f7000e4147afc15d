"""A delivery as it is read: what the Lua scripts keep in Redis, typed; and the message that is sent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.times import rfc3339
from known_core.files import canonical_json


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """One try. ``at`` is in ms since the epoch; exactly one of ``status`` (HTTP) and ``error`` is there, or both."""

    at: int
    status: int | None
    error: str | None
    duration_ms: int


@dataclass(frozen=True)
class Delivery:
    """What is to be told of a job, and what became of it. Times are ms since the epoch, on the Redis server's clock."""

    id: str  # the webhook-id: the same on every attempt
    tenant: str
    job_id: str
    job_status: str
    outcome: Mapping[str, Any]  # the job's result or error
    sealed_url: str
    shown_url: str
    status: DeliveryStatus
    tries: int  # attempts since it was made or asked for again
    created_at: int
    next_attempt_at: int | None
    attempts: Sequence[Attempt]

    @property
    def event(self) -> str:
        return f"job.{self.job_status}"

    def body(self) -> bytes:
        """The message: thin, for the job's own routes have the rest. The same bytes on every attempt."""
        urls = {name: f"/v1/jobs/{self.job_id}{path}" for name, path in (("job", ""), ("report", "/report"))}
        succeeded = self.job_status == "succeeded"
        return canonical_json({
            "type": self.event,
            "timestamp": rfc3339(self.created_at),
            "data": {
                "id": self.job_id,
                "status": self.job_status,
                "selected": self.outcome.get("selected"),
                "conclusion": self.outcome.get("conclusion"),
                "error": None if succeeded or not self.outcome else self.outcome.get("code"),
                "urls": urls if succeeded else {"job": urls["job"]},
            },
        })  # fmt: skip


def delivery_id(job_id: str) -> str:
    """A job ends once, so it has one delivery at most; states.lua makes the same."""
    return f"msg_{job_id.removeprefix('job_')}"


def parse_delivery(fields: Mapping[str, str], attempts: Sequence[str]) -> Delivery:
    """From the fields of the Redis hash, and the list of attempts."""
    webhook = json.loads(fields["webhook"])
    return Delivery(
        id=fields["id"],
        tenant=fields["tenant"],
        job_id=fields["job"],
        job_status=fields["job_status"],
        outcome=json.loads(fields["outcome"]) or {},
        sealed_url=webhook["url"],
        shown_url=webhook["shown"],
        status=DeliveryStatus(fields["status"]),
        tries=int(fields["tries"]),
        created_at=int(fields["created_at"]),
        next_attempt_at=int(fields["next_attempt_at"]) if "next_attempt_at" in fields else None,
        attempts=[Attempt(**json.loads(attempt)) for attempt in attempts],
    )
