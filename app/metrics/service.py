"""The metrics of this process and of the store."""

import hmac

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

import known_core
from app.jobs.repository import JobRepository
from app.metrics.collector import StoreCollector
from app.metrics.repository import MetricsRepository
from app.settings import AppSettings
from known_core.errors import KnownError

_LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_LAGS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """One registry for each application.

    Args:
        settings: ``metrics_token``: who knows it may read them, from wherever.
    """

    def __init__(self, repository: MetricsRepository, jobs: JobRepository, settings: AppSettings) -> None:
        self._token = settings.metrics_token
        self._registry = CollectorRegistry()
        self._registry.register(StoreCollector(repository, jobs))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        Gauge("known_info", "The version.", ["version"], registry=self._registry).labels(known_core.__version__).set(1)
        self.requests = Histogram(
            "known_http_request_seconds", "Requests, until their answer began.", ["route", "method", "status"],
            registry=self._registry, buckets=_LATENCIES_S,
        )  # fmt: skip
        self.uploaded = Counter("known_upload_bytes", "Bytes of uploads that arrived.", registry=self._registry)
        self.event_lag = Histogram(
            "known_event_lag_seconds", "From when an event was written until this process had it for who watches.",
            registry=self._registry, buckets=_LAGS_S,
        )  # fmt: skip

    def opened_by(self, token: str | None) -> bool:
        """Whether this is the operator's own token. Raises: KnownError ``metrics_closed`` for another one."""
        if self._token is None or token is None:
            return False
        if not hmac.compare_digest(self._token.get_secret_value().encode(), token.encode()):
            raise closed()
        return True

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page, and its content type: OpenMetrics where it is asked for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def closed() -> KnownError:
    return KnownError(
        "metrics_closed",
        "the metrics are for who sends the token of KNOWN_METRICS_TOKEN",
        "Send it as Authorization: Bearer. Where none is set, open mode answers this machine, keys mode nobody.",
    )
