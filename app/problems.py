"""Errors as RFC 9457 problem details. One handler; a 500 is a bug."""

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from known_core.errors import KnownError

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 5
_STATUS = {
    "key_missing": 401,
    "key_invalid": 401,
    "key_expired": 401,
    "key_revoked": 401,
    "session_ended": 401,
    "cross_site_request": 403,
    "metrics_closed": 403,
    "scope_missing": 403,
    "open_mode_is_local": 403,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "artifact_not_found": 404,
    "delivery_not_found": 404,
    "figure_not_found": 404,
    "job_not_found": 404,
    "upload_not_found": 404,
    "upload_expired": 410,
    "upload_complete": 409,
    "upload_in_use": 409,
    "upload_incomplete": 409,
    "upload_interrupted": 400,
    "upload_locked": 423,
    "upload_overrun": 413,
    "upload_stalled": 408,
    "offset_mismatch": 409,
    "chunk_checksum_mismatch": 460,
    "storage_quota_exceeded": 413,
    "tus_header_invalid": 400,
    "tus_version_unsupported": 412,
    "url_invalid": 403,
    "url_expired": 403,
    "hub_forbidden": 403,
    "hub_gated": 403,
    "hub_head_moved": 412,
    "hub_rate_limited": 503,
    "hub_unreachable": 503,
    "idempotency_key_in_flight": 409,
    "job_busy": 409,
    "job_ended": 409,
    "job_not_paused": 409,
    "publish_in_progress": 409,
    "result_not_ready": 409,
    "upload_too_large": 413,
    "media_type_unsupported": 415,
    "inspection_failed": 503,
    "result_damaged": 503,
    "storage_missing": 503,
    "storage_refused": 503,
    "storage_unavailable": 503,
    "record_too_new": 503,
    "store_unavailable": 503,
    "disk_full": 503,
}
_BEARER_ERRORS = {  # RFC 6750, 3.1; a request without a key is told none
    "key_invalid": ', error="invalid_token"',
    "key_expired": ', error="invalid_token"',
    "key_revoked": ', error="invalid_token"',
    "scope_missing": ', error="insufficient_scope"',
}
_TITLES = {
    400: "Bad request", 401: "Unauthorized", 403: "Forbidden", 404: "Not found", 405: "Method not allowed",
    408: "Request timeout", 409: "Conflict", 410: "Gone", 412: "Precondition failed", 413: "Content too large",
    415: "Unsupported media type", 416: "Range not satisfiable", 422: "Unprocessable content", 423: "Locked",
    429: "Too many requests", 460: "Checksum mismatch", 500: "Internal error", 503: "Unavailable",
}  # fmt: skip
_HTTP_CODES = {
    400: "json_invalid", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large",
    416: "range_not_satisfiable",
}  # fmt: skip
_HTTP_HINTS = {
    "json_invalid": "Check its nesting and its numbers.",
    "not_found": "GET /docs lists the routes.",
    "method_not_allowed": "GET /docs lists the routes.",
    "range_not_satisfiable": "Content-Range says how long the file is.",
    "request_too_large": "The operator sets the limit with KNOWN_MAX_REQUEST_BYTES. Files go to POST /v1/uploads.",
}
_MAX_ERRORS = 100  # fields at fault that an answer lists


class FieldError(BaseModel):
    pointer: str = Field(examples=["/forgetting/rate"], description="JSON pointer (RFC 6901) into the request")
    message: str = Field(examples=["Input should be less than or equal to 0.95; got 2"])


class Problem(BaseModel):
    """An error, as application/problem+json (RFC 9457)."""

    type: str = Field(examples=["urn:known:problem:unsafe_format"])
    title: str = Field(examples=["Unprocessable content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["model.safetensors is a pickle or an archive, not safetensors"])
    instance: str = Field(examples=["/v1/enhance"])
    code: str = Field(examples=["unsafe_format"])
    hint: str = Field("", examples=["Convert it with safetensors.torch.save_file."])
    errors: list[FieldError] = Field(default_factory=list)
    request_id: str = Field(examples=["req_5f2b1c"])


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI says of its errors."""
    return {
        status: {"model": Problem, "description": _TITLES[status], "content": {"application/problem+json": {}}}
        for status in statuses
    }


def install(api: FastAPI) -> None:
    """Give the application its error handlers."""
    for kind, handler in _HANDLERS.items():
        api.add_exception_handler(kind, handler)


async def answer_to(request: Request, error: Exception) -> Response:
    """What the application's handlers answer to an error: its problem."""
    return await next(handler for kind, handler in _HANDLERS.items() if isinstance(error, kind))(request, error)


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    hint: str = "",
    errors: list[FieldError] | None = None,
    retry_after_s: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    problem = Problem(
        type=f"urn:known:problem:{code}",
        title=_TITLES.get(status, "Error"),
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        hint=hint,
        errors=errors or [],
        request_id=getattr(request.state, "request_id", ""),
    )
    request.state.code = code  # for the audit log
    headers = dict(headers or {})
    if status == 401 or code == "scope_missing":
        headers["WWW-Authenticate"] = f'Bearer realm="known"{_BEARER_ERRORS.get(code, "")}'
    if status == 408:
        headers["Connection"] = "close"  # the rest of the request may never come
    if retry_after_s is None and (status in (423, 503) or code == "idempotency_key_in_flight"):
        retry_after_s = _RETRY_AFTER_S
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return Response(problem.model_dump_json(), status, headers, "application/problem+json")


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KnownError)
    errors = [FieldError(pointer=error.pointer, message=error.message)] if error.pointer else []
    retry_after_s = getattr(error, "retry_after_s", None)
    status = _STATUS.get(error.code, 422)
    headers = getattr(error, "headers", None)
    return _problem(request, status, error.code, error.message, error.hint, errors, retry_after_s, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    if any(detail["type"] == "json_invalid" for detail in details):
        return _problem(request, 400, "json_invalid", "the body is not JSON", "Check quotes, commas and braces.")
    errors = [
        FieldError(pointer=_pointer(detail["loc"]), message=f"{detail['msg']}; got {_shown(detail.get('input'))}")
        for detail in details[:_MAX_ERRORS]
    ]
    text = "; ".join(f"{item.pointer}: {item.message}" for item in errors)
    hint = "GET /openapi.json has every field with its range."
    return _problem(request, 422, "request_invalid", text, hint, errors)


def _pointer(location: tuple[str | int, ...]) -> str:
    parts = location[1:] if location and location[0] == "body" else location
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "error")
    response = _problem(request, error.status_code, code, str(error.detail), _HTTP_HINTS.get(code, ""))
    response.headers.update(error.headers or {})
    if error.status_code == 405 and (methods := _methods(request)):
        response.headers["Allow"] = methods
    return response


def _methods(request: Request) -> str:
    """What a path allows: Starlette names the methods of the first route that has it alone."""
    described: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    found = [methods for path, methods in described.items() if compile_path(path)[0].match(request.url.path)]
    return ", ".join(sorted({method.upper() for methods in found for method in methods}))


async def _store_error(request: Request, error: Exception) -> Response:
    _log.warning("the job store did not answer: %s", error)
    hint = "Try again; if it lasts, look at the Redis or Valkey server KNOWN_REDIS_URL names."
    return _problem(request, 503, "store_unavailable", "the job store did not answer", hint)


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("unexpected error on %s", request.url.path, exc_info=error)
    return _problem(request, 500, "internal_error", "this is a bug in known", "Report it with the request_id.")


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    KnownError: _known_error,
    RequestValidationError: _validation_error,
    HTTPException: _http_error,
    RedisError: _store_error,
    Exception: _bug,
}
