"""The pages. None is part of the described interface: they show what the API says, and their scripts ask it."""

from typing import Annotated, cast
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.dashboard.fields import data_fields, sections
from app.dashboard.pages import HEADERS, Page, page
from app.dashboard.service import DashboardService
from app.dependencies import JobId, Sessions, Who, caller_by_key
from app.jobs.record import JobStatus
from app.keys.sessions import check_from_here, is_from_here
from app.problems import answer_to
from known_core.errors import KnownError

router = APIRouter(route_class=Page, include_in_schema=False)


def _dashboard(request: Request) -> DashboardService:
    return cast(DashboardService, request.app.state.dashboard)


Dashboard = Annotated[DashboardService, Depends(_dashboard)]
Next = Annotated[str, Query(alias="next", max_length=2000)]


@router.get("/")
def list_jobs(
    request: Request,
    dashboard: Dashboard,
    caller: Who,
    after: Annotated[str | None, Query(max_length=80)] = None,
    status: JobStatus | None = None,
) -> Response:
    jobs, same = dashboard.jobs(caller, after, status), dashboard.snippets(_server(request)).of_list(after, status)
    return page(request, "jobs.html", jobs=jobs, after=after, wanted=status, statuses=list(JobStatus), snippet=same)


@router.get("/jobs/new")
def new_job(request: Request, caller: Who) -> Response:
    return page(request, "new.html", sections=sections(), data_fields=data_fields)


@router.get("/jobs/{job_id}")
async def show_job(request: Request, dashboard: Dashboard, caller: Who, job_id: JobId) -> Response:
    return page(request, "job.html", shown=await dashboard.job(caller, job_id, _server(request)))


@router.get("/login")
def ask_for_a_key(request: Request, next_: Next = "/") -> Response:
    """Also where a link of another site led: its request came without the session's cookie, the next one has it."""
    return page(request, "login.html", next=_inside(next_), problem=None, arrived=not is_from_here(request))


@router.post("/login")
async def log_in(request: Request, sessions: Sessions) -> Response:
    check_from_here(request)
    form = dict(parse_qsl((await request.body()).decode(errors="replace")))
    inside = _inside(form.get("next", "/"))
    try:
        token = form.get("key", "").strip()
        await caller_by_key(request, token)
    except KnownError as error:
        refused = await answer_to(request, error)
        return page(request, "login.html", refused.status_code, next=inside, problem=error, arrived=False)
    response = RedirectResponse(inside, 303, HEADERS)
    await sessions.begin(request, response, token)
    return response


@router.post("/logout")
async def log_out(request: Request, sessions: Sessions) -> Response:
    check_from_here(request)
    response = RedirectResponse("/login", 303, HEADERS)
    await sessions.end(request, response)
    return response


def _server(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _inside(path: str) -> str:
    """A path of this site; whatever could lead to another one is the list of jobs."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"
