"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT says where they go: nothing is imported otherwise.

They need ``pip install 'known[otel]'``. All else is configured by OpenTelemetry's own variables.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_log = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MS = 2000
_provider: "TracerProvider | None" = None


def start_tracing(service: str) -> "TracerProvider | None":
    """Begin, once a process.

    Args:
        service: its name, unless OTEL_SERVICE_NAME says another.

    Returns:
        None where it is not configured, or the extra is not installed.
    """
    global _provider
    if _provider is None and any(os.environ.get(name) for name in _ENDPOINTS):
        try:
            _provider = _make_provider(service)
        except ImportError as error:
            _log.warning("no traces although %s is set (%s): pip install 'known[otel]'", " or ".join(_ENDPOINTS), error)
    return _provider


def _make_provider(service: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service)}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def traceparent() -> str | None:
    """The span that this code runs in, as a W3C Trace Context header says it; None where there is none."""
    if _provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(name: str, parent: str | None = None, **attributes: Any) -> Iterator[None]:
    """A context that is a span; below the one that this code runs in, or ``parent`` (of :func:`traceparent`)."""
    if _provider is None:
        yield
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    kept = {name: value for name, value in attributes.items() if value is not None}
    with _provider.get_tracer("known").start_as_current_span(name, context=context, attributes=kept):
        yield


def mark_failed(code: str) -> None:
    """Say that what the current span stands for has failed; with no message, which may name what is a user's."""
    if _provider is not None:
        from opentelemetry.trace import Status, StatusCode, get_current_span

        get_current_span().set_status(Status(StatusCode.ERROR, code))


def flush() -> None:
    """Send what has ended, within two seconds."""
    if _provider is not None:
        _provider.force_flush(_FLUSH_MS)


class Phases:
    """A span for each phase of a process without network, which says only when one begins."""

    def __init__(self) -> None:
        self._span: Span | None = None

    def enter(self, name: str | None) -> None:
        """One begins, and the one before ends; None: none begins."""
        if self._span is not None:
            self._span.end()
            self._span = None
        if _provider is not None and name is not None:
            self._span = _provider.get_tracer("known").start_span(name)
