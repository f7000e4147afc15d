"""Routes about webhooks."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.dependencies import DeliveryId, Webhooks, Who
from app.keys.caller import Scope
from app.keys.service import require
from app.problems import problem_responses
from app.webhooks.record import DeliveryStatus
from app.webhooks.schemas import DELIVERY_EXAMPLE, SECRET_EXAMPLE, DeliveryList, DeliveryView, SecretView

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
_DELIVERY = {"content": {"application/json": {"example": DELIVERY_EXAMPLE}}}
_SECRET = {"content": {"application/json": {"example": SECRET_EXAMPLE}}}


@router.get("/deliveries", summary="List webhook deliveries, newest first",
            responses={200: {"content": {"application/json": {"example": {
                "object": "list", "data": [DELIVERY_EXAMPLE], "first_id": DELIVERY_EXAMPLE["id"],
                "last_id": DELIVERY_EXAMPLE["id"], "has_more": False}}}}, **problem_responses(404, 422)})  # fmt: skip
def list_deliveries(
    webhooks: Webhooks,
    caller: Who,
    job: Annotated[str | None, Query(pattern=r"^job_[0-9a-f]{24}$", description="only this job's")] = None,
    status: Annotated[DeliveryStatus | None, Query(description="only deliveries in this state")] = None,
    after: Annotated[str | None, Query(description="the last_id of the page before", max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> DeliveryList:
    """Of the last 30 days, each with every attempt at it; go on with ``after=last_id`` while ``has_more``."""
    return webhooks.page(caller, job, after, limit, status)


@router.get("/deliveries/{delivery_id}", summary="Show a webhook delivery",
            responses={200: _DELIVERY, **problem_responses(404, 422)})  # fmt: skip
def get_delivery(delivery_id: DeliveryId, webhooks: Webhooks) -> DeliveryView:
    """What the receiver was told, and every attempt at it."""
    return webhooks.get(delivery_id)


@router.post("/deliveries/{delivery_id}/redeliver", status_code=202, summary="Deliver a webhook again",
             responses={202: _DELIVERY, **problem_responses(404, 422)})  # fmt: skip
def redeliver(delivery_id: DeliveryId, webhooks: Webhooks) -> DeliveryView:
    """At once, and with all retries where that fails; the message and its webhook-id are the same."""
    return webhooks.redeliver(delivery_id)


@router.get("/secret", summary="Show the secret that signs webhooks", responses={200: _SECRET})
def get_secret(webhooks: Webhooks, caller: Who, response: Response) -> SecretView:
    """Made when it is first needed. Receivers verify deliveries with it (Standard Webhooks). Needs the scope write too:
    whoever has it can sign."""
    require(caller, Scope.WRITE)
    response.headers["Cache-Control"] = "no-store"
    return webhooks.secret(caller)


@router.post("/secret/rotate", summary="Replace the secret that signs webhooks", responses={200: _SECRET})
def rotate_secret(webhooks: Webhooks, caller: Who, response: Response) -> SecretView:
    """For 24 hours deliveries are signed with both, so that receivers can change over; a second time ends the first."""
    response.headers["Cache-Control"] = "no-store"
    return webhooks.rotate(caller)
