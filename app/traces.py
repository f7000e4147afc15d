"""A span for each request, where traces are configured."""

from fastapi import FastAPI

from known_core.traces import start_tracing

_NOT_TRACED = "healthz,readyz,metrics"


def trace_requests(api: FastAPI) -> None:
    """Call it before the application serves anything."""
    provider = start_tracing("known-api")
    if provider is None:
        return
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        api, tracer_provider=provider, excluded_urls=_NOT_TRACED, exclude_spans=["send", "receive"]
    )
