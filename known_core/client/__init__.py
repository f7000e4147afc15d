"""A client of the service: upload, enhance, wait, look, download, verify. :class:`Client` blocks, :class:`AsyncClient`
does not; what they do is written once, in :mod:`known_core.client.operations`."""

from known_core.client import errors
from known_core.client.asynchronous import AsyncClient, AsyncJob
from known_core.client.blocking import Client, Job
from known_core.client.connection import DEFAULT_SERVER
from known_core.client.records import (
    Artifact,
    AuditEntry,
    Capabilities,
    Checkpoint,
    Delivery,
    Estimate,
    Event,
    JobPage,
    Upload,
    WebhookSecret,
)
from known_core.client.report import Report

__all__ = [
    "DEFAULT_SERVER",
    "Artifact",
    "AsyncClient",
    "AsyncJob",
    "AuditEntry",
    "Capabilities",
    "Checkpoint",
    "Client",
    "Delivery",
    "Estimate",
    "Event",
    "Job",
    "JobPage",
    "Report",
    "Upload",
    "WebhookSecret",
    "errors",
]
