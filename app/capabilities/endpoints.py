"""The route that says what this service can do."""

from fastapi import APIRouter

import known_core
from app.capabilities.schemas import CAPABILITIES_EXAMPLE, Capabilities, ServiceLimits, WorkerView
from app.dependencies import Inspecting, Repository, Settings
from app.problems import problem_responses

router = APIRouter(tags=["health"])


@router.get("/v1/capabilities", summary="What this service can do",
            responses={200: {"content": {"application/json": {"example": CAPABILITIES_EXAMPLE}}},
                       **problem_responses(503)})  # fmt: skip
def get_capabilities(inspector: Inspecting, repository: Repository, settings: Settings) -> Capabilities:
    """Tasks, libraries, hyper-models and engines of its version; the machines of the workers that live; its limits."""
    return Capabilities(
        version=known_core.__version__,
        access=settings.access,
        **inspector.abilities(),
        workers=[
            WorkerView(name=name, calibrated_at=(facts.get("calibration") or {}).get("calibrated_at"), **facts)
            for name, facts in repository.worker_facts().items()
        ],
        limits=ServiceLimits(**settings.model_dump(include=set(ServiceLimits.model_fields))),
    )
