"""What the audit log looks like."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class AuditEntry(BaseModel):
    """A request that changed something or was refused, or what an operator did."""

    id: str = Field(description="milliseconds since the epoch, and a sequence number")
    key: str | None = Field(None, description="id of the API key; null in open mode")
    action: str | None = Field(None, description="what an operator did to the key")
    method: str | None = None
    path: str | None = None
    object: str | None = Field(None, description="id of the job or upload that the request named or made")
    status: int | None = None
    code: str | None = Field(None, description="of the problem, where the request was refused")
    client: str | None = Field(None, description="address the request came from")
    request_id: str | None = None


class AuditPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[AuditEntry]
    last_id: str | None


AUDIT_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "1763978400000-0", "key": "0123456789ab", "action": None, "method": "POST", "path": "/v1/enhance",
            "object": "job_0123456789abcdef01234567", "status": 202, "code": None,
            "client": "192.0.2.7", "request_id": "req_5f2b1c0123456789",
        }
    ],
    "last_id": "1763978400000-0",
}  # fmt: skip
