"""Route of the audit log."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.audit.schemas import AUDIT_EXAMPLE, AuditPage
from app.dependencies import Audit, Who
from app.keys.caller import Scope
from app.keys.service import require
from app.problems import problem_responses

router = APIRouter(tags=["audit"])


@router.get("/v1/audit", summary="Who changed what", responses={
    200: {"content": {"application/json": {"example": AUDIT_EXAMPLE}}}, **problem_responses(422)})  # fmt: skip
async def get_audit(
    audit: Audit,
    caller: Who,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[
        str | None, Query(pattern=r"^[1-9][0-9]{0,15}-[0-9]{1,16}$", description="the last_id of the page before")
    ] = None,
) -> AuditPage:  # fmt: skip
    """The tenant's requests that changed something or were refused, newest first. Needs the scope admin."""
    require(caller, Scope.ADMIN)
    return await audit.page(caller, before, limit)
