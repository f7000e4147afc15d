"""Probes."""

from fastapi import APIRouter

from app.dependencies import Repository, Settings
from app.health.schemas import Health, Ready
from app.problems import problem_responses

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive",
            responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}})  # fmt: skip
async def healthz() -> Health:
    """Always 200 while the process answers."""
    return Health()


@router.get("/readyz", summary="Can jobs be accepted",
            responses={200: {"content": {"application/json": {
                "example": {"status": "ok", "workers": 1, "access": "keys"}}}}, **problem_responses(503)})  # fmt: skip
def readyz(repository: Repository, settings: Settings) -> Ready:
    """200 when the job store answers; ``workers`` is how many have said lately that they run."""
    repository.ping()
    return Ready(workers=len(repository.workers()), access=settings.access)
