"""What requests and answers about webhooks look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.webhooks.guard import MAX_URL
from app.webhooks.record import DeliveryStatus
from known_core.spec import Settings

JobEnd = Literal["completed", "succeeded", "failed", "canceled"]


class WebhookRequest(Settings):
    """Whom to tell of the job's end."""

    url: str = Field(
        min_length=1,
        max_length=MAX_URL,
        description="https, on the public internet",
        examples=["https://example.com/hook"],
    )
    events: tuple[JobEnd, ...] = Field(
        ("completed",), min_length=1, max_length=4, description="ends to tell of; completed: any of them"
    )


class AttemptView(BaseModel):
    at: str
    status: int | None = Field(description="the receiver's, where it answered")
    error: str | None = Field(description="why it was no success")
    duration_ms: int


class DeliveryView(BaseModel):
    """What a receiver was told, or is to be told, and every attempt at it. Times are RFC 3339, UTC."""

    id: str = Field(description="the webhook-id, the same on every attempt")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    job_id: str
    event: str
    url: str = Field(description="without its query")
    status: DeliveryStatus
    attempts: list[AttemptView] = Field(description="the last 100, oldest first")
    created_at: str
    next_attempt_at: str | None


class DeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DeliveryView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class SecretView(BaseModel):
    """What this tenant's deliveries are signed with."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str
    created_at: str
    previous_expires_at: str | None = Field(description="until when the secret before signs as well")


DELIVERY_EXAMPLE: dict[str, Any] = {
    "id": "msg_0123456789abcdef01234567",
    "object": "webhook_delivery",
    "job_id": "job_0123456789abcdef01234567",
    "event": "job.succeeded",
    "url": "https://example.com/hook",
    "status": "pending",
    "attempts": [
        {
            "at": "2026-11-24T10:09:02.100Z",
            "status": 301,
            "error": "the receiver redirects to https://www.example.com/hook; redirects are not followed",
            "duration_ms": 84,
        }
    ],
    "created_at": "2026-11-24T10:09:01.000Z",
    "next_attempt_at": "2026-11-24T10:09:07.184Z",
}
SECRET_EXAMPLE: dict[str, Any] = {
    "object": "webhook_secret",
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
    "created_at": "2026-11-24T10:00:00.000Z",
    "previous_expires_at": None,
}
