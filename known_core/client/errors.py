"""What goes wrong with a service, as exceptions: a class for each kind of problem, and below it one for each code.

``except errors.NotFound`` is whatever is not there, ``except errors.JobNotFound`` the code ``job_not_found`` alone.
Every code of docs/errors.md has such a class: its name in camel case.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from known_core.errors import KnownError

if TYPE_CHECKING:
    from known_core.client.records import JobFields


class Problem(KnownError):
    """What a service, or the way to it, refused.

    Attributes:
        status: of the HTTP answer, where there was one.
        errors: the fields of the request at fault: [{"pointer": "/forgetting/rate", "message": "..."}].
        request_id: by which the service's log names the request.
        retry_after_s: seconds after which the service wants to be asked again, where it said so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
        pointer: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(code, message, hint, pointer=pointer, retryable=retryable)
        self.status = status
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> Any:
        names = ("status", "errors", "request_id", "retry_after_s", "pointer", "retryable")
        rebuild = partial(problem, **{name: getattr(self, name) for name in names})
        return rebuild, (self.code, self.message, self.hint)


class Invalid(Problem):
    """The request, a file or a value is not what it has to be; ``errors`` points at the fields."""


class Unauthorized(Problem):
    """No key, or not a good one."""


class Forbidden(Problem):
    """The key, the token or the address does not allow it."""


class NotFound(Problem):
    """It is not there, is there no longer, or is another tenant's."""


class Conflict(Problem):
    """Not in this state, or somebody else is at it."""


class TooLarge(Problem):
    """More than the service takes."""


class RateLimited(Problem):
    """Too many requests; ``retry_after_s`` says when to come back."""


class QuotaExceeded(Problem):
    """As many jobs wait, or as many bytes are kept, as one tenant may have."""


class Unavailable(Problem):
    """The service, its store or the Hub does not answer, or lacks what it needs; later it may."""


class JobFailed(Problem):
    """A job that was waited for has failed or was canceled; ``job`` is it."""

    job: "JobFields | None" = None


class WaitTimeout(Problem, TimeoutError):
    """The time for waiting is over; the job goes on."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(
            "wait_timeout", f"{job_id} has not ended within {timeout_s:g} s", "It goes on: wait again.", retryable=True
        )
        self._arguments = (job_id, timeout_s)

    def __reduce__(self) -> Any:
        return WaitTimeout, self._arguments


_CODES: dict[type[Problem], str] = {
    Invalid: """
        header_too_small header_too_large header_truncated header_invalid offset_invalid size_mismatch tensor_invalid
        tensor_name_invalid duplicate_tensor too_many_tensors shape_limit nonfinite_weights unsafe_format
        weights_missing index_invalid shard_path_invalid tensors_mismatch states_count states_mismatch source_unreadable
        config_missing config_invalid config_field_refused remote_code_refused template_refused unsupported_architecture
        base_missing task_unclear task_unknown processor_missing processor_invalid dataset_missing dataset_unusable
        dataset_script_refused labels_mismatch label_out_of_range archive_invalid archive_path_invalid
        archive_format_refused not_regular_file repo_id_invalid hub_refused request_invalid json_invalid
        range_not_satisfiable method_not_allowed candidate_unknown hypermodel_unknown upload_unknown upload_empty
        upload_incomplete upload_stalled upload_interrupted chunk_checksum_mismatch tus_header_invalid
        tus_version_unsupported media_type_unsupported checksum_mismatch url_refused idempotency_key_reused
        publish_target_missing usage tenant_invalid file_invalid engine_unavailable manifest_invalid input_differs
        hypermodel_differs hypermodel_invalid history_shape too_few_trajectories designs_mixed option_invalid
        extra_missing demo_mismatch helper_differs trajectory_broken
    """,
    Unauthorized: "key_missing key_invalid key_expired key_revoked session_ended hub_token_refused hub_token_missing",
    Forbidden: """
        scope_missing open_mode_is_local url_invalid url_expired hub_gated hub_forbidden endpoint_not_allowed
        cross_site_request metrics_closed
    """,
    NotFound: """
        not_found upload_not_found upload_expired job_not_found delivery_not_found artifact_not_found hub_not_found
        hub_revision_not_found hub_file_missing key_not_found file_missing manifest_missing input_missing sample_missing
        figure_not_found
    """,
    Conflict: """
        upload_in_use offset_mismatch job_not_paused job_busy job_ended idempotency_key_in_flight result_not_ready
        upload_locked upload_complete publish_in_progress hub_head_moved hub_repo_public output_exists
        stack_running port_in_use
    """,
    TooLarge: """
        model_too_large image_limit row_limit archive_limit request_too_large upload_too_large upload_overrun
        file_too_large
    """,
    RateLimited: "rate_limited hub_rate_limited",
    QuotaExceeded: "quota_exceeded storage_quota_exceeded",
    Unavailable: """
        inspection_failed store_unavailable record_too_new disk_full hub_unreachable hub_offline server_unreachable
        server_error stack_failed result_damaged storage_missing storage_refused storage_unavailable
    """,
    JobFailed: """
        out_of_memory device_unavailable isolation_incomplete limit_reached training_diverged secret_key_invalid
        processes_invalid sharding_unsupported
        worker_died internal_error job_canceled
    """,
    WaitTimeout: "wait_timeout",
}
_KIND_OF_STATUS: dict[int, type[Problem]] = {  # of a code that this client does not know yet
    401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 410: NotFound, 412: Conflict, 413: TooLarge,
    423: Conflict, 429: RateLimited, 500: Unavailable, 502: Unavailable, 503: Unavailable, 504: Unavailable,
}  # fmt: skip
_PASSING = (408, 423, 429, 502, 503, 504)  # statuses of what may be well a moment later


def _camel(code: str) -> str:
    return "".join(part.capitalize() for part in code.split("_"))


def _table() -> dict[str, type[Problem]]:
    classes: dict[str, type[Problem]] = {}
    for kind, codes in _CODES.items():
        for code in codes.split():
            name = _camel(code)
            own = name in globals()  # the kind itself, such as RateLimited
            classes[code] = globals()[name] if own else type(name, (kind,), {"__module__": __name__})
    return classes


_CLASSES = _table()
_BY_NAME = {kind.__name__: kind for kind in _CLASSES.values()}


def __getattr__(name: str) -> type[Problem]:
    """The class of one code, such as ``JobNotFound``."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise AttributeError(f"there is no error {name!r}; docs/errors.md lists the codes") from None


def class_of(code: str, status: int | None = None) -> type[Problem]:
    """The class of a code; of a code that is unknown here, as of a newer service, the kind its HTTP status says."""
    return _CLASSES.get(code) or _KIND_OF_STATUS.get(status or 0, Invalid)


def problem(code: str, message: str, hint: str = "", *, status: int | None = None, **more: Any) -> Problem:
    """The exception of a code."""
    return class_of(code, status)(code, message, hint, status=status, **more)


def from_answer(answer: httpx.Response) -> Problem:
    """The exception that an answer of the service stands for. Its body has to have been read."""
    status, passes = answer.status_code, answer.status_code in _PASSING
    more: dict[str, Any] = {"status": status, "retry_after_s": _retry_after_s(answer)}
    more["request_id"] = answer.headers.get("X-Request-Id")
    try:
        said = answer.json()
        code, message, hint = said["code"], said["detail"], said["hint"]
    except (ValueError, KeyError, TypeError):
        kind = _KIND_OF_STATUS.get(status, Unavailable)
        return kind("server_error", f"the server answered {status}", answer.text[:200], retryable=passes, **more)
    errors = said.get("errors") or ()
    more |= {"errors": errors, "pointer": errors[0].get("pointer") if errors else None}
    passes = passes or code == "offset_mismatch"  # of an upload that was cut off just now
    return problem(code, message, hint, retryable=passes, **more)


def _retry_after_s(answer: httpx.Response) -> float | None:
    said = answer.headers.get("Retry-After", "")
    return float(said) if re.fullmatch(r"\d{1,9}", said) else None
