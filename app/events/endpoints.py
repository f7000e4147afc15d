"""Routes about events."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from app.dependencies import Events, JobId, MayRead, Settings
from app.events.schemas import EVENT_EXAMPLE, EventPage, EventView
from app.events.service import EventService
from app.problems import problem_responses

router = APIRouter(tags=["events"])
_STREAM_ID = r"^[0-9]{1,16}(-[0-9]{1,16})?$"
_RETRY_MS = 2000  # how long a browser waits before it connects again


@router.get(
    "/v1/jobs/{job_id}/events",
    summary="Follow a job",
    response_model=EventPage,
    responses={
        200: {
            "content": {
                "application/json": {"example": EVENT_EXAMPLE},
                "text/event-stream": {"example": 'id: 1763978400000-0\nevent: status\ndata: {"status": "queued"}\n\n'},
            }
        },
        **problem_responses(404, 422),
    },
)
async def get_events(
    job_id: JobId,
    events: Events,
    may_read: MayRead,
    settings: Settings,
    after: Annotated[str, Query(pattern=_STREAM_ID, description="only events after this id")] = "0",
    limit: Annotated[int, Query(ge=1, le=1000, description="of a JSON page")] = 500,
    wait: Annotated[int, Query(ge=0, le=3600, description="seconds a JSON page waits for its first event")] = 0,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header(pattern=_STREAM_ID)] = None,
) -> EventPage | EventSourceResponse:
    """A page of events as JSON, or with ``Accept: text/event-stream`` the events as they happen, until the job ends.

    A stream that breaks goes on where it was: browsers send the last id they saw as Last-Event-ID.
    """
    if "text/event-stream" in accept:
        news = _sse(events, job_id, last_event_id or after, may_read)
        return EventSourceResponse(news, headers={"Cache-Control": "no-store"})
    found, ended = await events.page(job_id, after, limit, min(wait, settings.max_wait_seconds))
    data = [EventView(id=event.id, type=event.data["type"], data=event.data) for event in found]
    return EventPage(data=data, last_id=data[-1].id if data else None, ended=ended)


async def _sse(
    events: EventService, job_id: str, after: str, may_read: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    async for event in events.stream(job_id, after, may_read):
        if event is None:
            yield KEEPALIVE_COMMENT
        else:
            yield format_sse_event(
                data_str=json.dumps(event.data), event=event.data["type"], id=event.id, retry=_RETRY_MS
            )
