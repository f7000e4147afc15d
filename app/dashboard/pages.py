"""Pages: templates filled, sent with the headers that keep a page to itself, errors included."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined

import known_core
from app.dashboard import shown
from app.problems import Problem, answer_to

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_templates = Environment(
    loader=PackageLoader("app.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_templates.filters |= {name: getattr(shown, name) for name in shown.__all__}
_templates.globals["version"] = known_core.__version__


class Assets(StaticFiles):
    """Scripts, styles and icons; browsers ask each time whether they have the newest."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
        return response


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A page of the dashboard, for whoever's request it is."""
    settings, caller = request.app.state.settings, getattr(request.state, "caller", None)
    shared = {"path": request.url.path, "access": settings.access, "tenant": caller.tenant if caller else None}
    return HTMLResponse(_templates.get_template(template).render(**shared, **values), status, HEADERS)


class Page(APIRoute):
    """A route whose errors are pages too: the API's problem, shown; without a key, the way to log in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_with_a_page(request: Request) -> Response:
            try:
                return await answer(request)
            except Exception as error:
                return _error_page(request, await answer_to(request, error))

        return answer_with_a_page


def _error_page(request: Request, answer: Response) -> Response:
    problem = Problem.model_validate_json(bytes(answer.body))
    if problem.status == 401:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        login = f"/login?{urlencode({'next': here})}"
        if "HX-Request" in request.headers:  # a part of a page was asked for: the whole page goes there
            return Response(status_code=401, headers=HEADERS | {"HX-Redirect": login})
        return RedirectResponse(login, 303, HEADERS)
    shown_page = page(request, "error.html", problem.status, problem=problem)
    if "Retry-After" in answer.headers:
        shown_page.headers["Retry-After"] = answer.headers["Retry-After"]
    return shown_page
