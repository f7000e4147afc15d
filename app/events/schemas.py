"""What events look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field

GAP = "gap"  # the type of what stands for events that are no longer kept


class EventView(BaseModel):
    id: str = Field(examples=["1763978400000-0"], description="orders events; give it back as after or Last-Event-ID")
    type: str = Field(examples=["progress"])
    data: dict[str, Any]


class EventPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[EventView]
    last_id: str | None
    ended: bool = Field(description="the job has ended and no event follows these")


EVENT_EXAMPLE: dict[str, Any] = {
    "object": "list",
    "data": [
        {"id": "1763978400000-0", "type": "status", "data": {"type": "status", "status": "queued"}},
        {
            "id": "1763978401000-0",
            "type": "progress",
            "data": {
                "type": "progress",
                "phase": "forgetting",
                "step": 40,
                "total": 92,
                "eta_seconds": 3.1,
                "loss": 0.4213,
            },
        },
    ],
    "last_id": "1763978401000-0",
    "ended": False,
}
