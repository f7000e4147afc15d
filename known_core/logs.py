"""Logs of a process: lines for people, or a JSON object a line; each with the ids that it is about.

Modules log with the standard library; structlog gives their records times, levels, and what :func:`about` says.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

_FORMAT = "KNOWN_LOG_FORMAT"
_CONTEXT = "_LOG_CONTEXT"  # how ids travel to a process that this one starts
_LOUD = ("httpx", "httpcore")  # a line for each request that they make
_OWN = "fields"  # a record's attribute: what is to stand beside its message


def in_json() -> bool:
    """Whether logs are JSON: KNOWN_LOG_FORMAT is json, not console."""
    return os.environ.get(_FORMAT, "console") == "json"


def configure_logs(*replaced: str) -> None:
    """Send every record to standard error in the format that KNOWN_LOG_FORMAT names, from INFO on.

    Args:
        replaced: loggers that have handlers of their own, which go.
    """
    structlog.contextvars.bind_contextvars(**json.loads(os.environ.pop(_CONTEXT, "{}")))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_before(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last()],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.INFO)
    for name in replaced:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)


def _before() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _own_fields,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _last() -> list[Processor]:
    if in_json():
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]


def _own_fields(logger: Any, method: str, event: EventDict) -> EventDict:
    return {**event, **getattr(event.get("_record"), _OWN, {})}


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """For ``extra`` of a logging call: what is to stand beside the message."""
    return {_OWN: dict(values)}


@contextmanager
def about(**ids: str | None) -> Iterator[None]:
    """A context whose records carry these ids, such as ``job_id`` and ``request_id``; None is none."""
    with structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value is not None}):
        yield


def current(name: str) -> str | None:
    """One of these ids, where the context has it."""
    found: str | None = structlog.contextvars.get_contextvars().get(name)
    return found


def inherited() -> dict[str, str]:
    """The environment with which a process logs as this one does, and about the same."""
    context = {_CONTEXT: json.dumps(structlog.contextvars.get_contextvars())}
    return context | {name: os.environ[name] for name in (_FORMAT,) if name in os.environ}
