"""The same client for asyncio and trio: what :mod:`known_core.client.blocking` does, awaited.

Methods are documented there; the docstrings are taken over.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import PrivateAttr

from known_core.client import blocking, operations, steps
from known_core.client.connection import connection
from known_core.client.progress import job_progress, upload_progress
from known_core.client.records import (
    Artifact,
    AuditEntry,
    Capabilities,
    Checkpoint,
    Delivery,
    Estimate,
    Event,
    JobFields,
    JobPage,
    Upload,
    WebhookSecret,
)
from known_core.client.report import Report
from known_core.client.requests import Input, Wanted
from known_core.client.steps import Steps
from known_core.client.transfer import Patience, Progress, unseen, upload_path

Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)


def _documented_as(other: type) -> Callable[[Class], Class]:
    """Gives each method the docstring of its namesake."""

    def document(kind: Class) -> Class:
        for name, member in vars(kind).items():
            if callable(member) and not name.startswith("_"):
                member.__doc__ = getattr(other, name).__doc__
        return kind

    return document


@_documented_as(blocking.Job)
class AsyncJob(JobFields):
    """A job, and what can be done with it. Its fields are those of the moment: :meth:`refresh` asks again."""

    _client: "AsyncClient" = PrivateAttr()

    async def refresh(self) -> "AsyncJob":
        return await self._client.job(self.id)

    async def wait(self, timeout_s: float | None = None, *, progress: bool = True, check: bool = True) -> "AsyncJob":
        return await self._client.wait(self.id, timeout_s, progress=progress, check=check)

    async def report(self) -> Report:
        return await self._client.report(self.id)

    async def download(self, out: Path | str, only: str | None = None, on_bytes: Progress = unseen) -> int:
        return await self._client.download(self.id, out, only, on_bytes)

    async def cancel(self) -> "AsyncJob":
        return await self._client.cancel(self.id)

    async def pause(self) -> "AsyncJob":
        return await self._client.pause(self.id)

    async def resume(self) -> "AsyncJob":
        return await self._client.resume(self.id)

    async def republish(
        self,
        push: str | Mapping[str, Any] | None = None,
        candidate: str | None = None,
        *,
        token: str | None = None,
        wait: bool = True,
    ) -> "AsyncJob":
        return await self._client.republish(self.id, push, candidate, token=token, wait=wait)

    async def delete(self) -> None:
        await self._client.delete(self.id)

    def events(self, *, follow: bool = True) -> AsyncIterator[Event]:
        return self._client.events(self.id, follow=follow)

    async def logs(self, tail: int = 1000) -> str:
        return await self._client.logs(self.id, tail)

    def follow_logs(self, tail: int = 1000) -> AsyncIterator[str]:
        return self._client.follow_logs(self.id, tail)

    async def files(self) -> list[Artifact]:
        return await self._client.files(self.id)

    async def manifest(self) -> dict[str, Any]:
        return await self._client.manifest(self.id)

    async def checkpoints(self) -> list[Checkpoint]:
        return await self._client.checkpoints(self.id)


@_documented_as(blocking.Client)
class AsyncClient:
    """Talks to one service without blocking the event loop, and is good for ``async with``.

    Args and errors are those of :class:`~known_core.client.blocking.Client`.
    """

    def __init__(self, server: str | None = None, api_key: str | None = None, patience_s: float = 120) -> None:
        self._patience_s = patience_s
        options = connection(server, api_key)
        self.server = str(options["base_url"])
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def enhance(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        model: Input | None = None,
        dataset: Input | None = None,
        trajectory: Sequence[Input] | None = None,
        downstream: Input | None = None,
        token: str | None = None,
        idempotency_key: str | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> AsyncJob:
        wanted = Wanted(request, model, dataset, trajectory, downstream, settings)
        return self._job(await self._start(wanted, token, idempotency_key, progress, dry_run=False))

    async def estimate(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        model: Input | None = None,
        dataset: Input | None = None,
        trajectory: Sequence[Input] | None = None,
        downstream: Input | None = None,
        token: str | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Estimate:
        wanted = Wanted(request, model, dataset, trajectory, downstream, settings)
        return Estimate.model_validate(await self._start(wanted, token, None, progress, dry_run=True))

    async def upload(self, path: Path | str, on_bytes: Progress = unseen) -> str:
        return await self._do(upload_path(self.server, Path(path), on_bytes, Patience(self._patience_s)))

    async def job(self, job_id: str) -> AsyncJob:
        return self._job(await self._get(f"/v1/jobs/{job_id}"))

    async def jobs(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncJob]:
        pages = operations.pages("/v1/jobs", self._patience_s, {"status": status}, limit)
        async for raw in steps.aiterate(self._http, pages):
            yield self._job(raw)

    async def job_page(self, limit: int = 20, after: str | None = None, status: str | None = None) -> JobPage[AsyncJob]:
        raw = await self._get("/v1/jobs", {"limit": limit, "after": after, "status": status})
        return JobPage(tuple(map(self._job, raw["data"])), raw["last_id"], raw["has_more"])

    async def wait(
        self, job_id: str, timeout_s: float | None = None, *, progress: bool = True, check: bool = True
    ) -> AsyncJob:
        with job_progress(job_id, progress) as draw:
            return self._job(await self._do(operations.wait(job_id, self._patience_s, timeout_s, check, draw)))

    async def cancel(self, job_id: str) -> AsyncJob:
        return self._job(await self._post(f"/v1/jobs/{job_id}/cancel"))

    async def pause(self, job_id: str) -> AsyncJob:
        return self._job(await self._post(f"/v1/jobs/{job_id}/pause"))

    async def resume(self, job_id: str) -> AsyncJob:
        return self._job(await self._post(f"/v1/jobs/{job_id}/resume"))

    async def republish(
        self,
        job_id: str,
        push: str | Mapping[str, Any] | None = None,
        candidate: str | None = None,
        *,
        token: str | None = None,
        wait: bool = True,
    ) -> AsyncJob:
        body, headers = operations.republish_request(push, candidate), operations.token_header(token)
        raw = await self._do(operations.post(f"/v1/jobs/{job_id}/republish", self._patience_s, body, headers))
        return self._job(await self._do(operations.republished(job_id, self._patience_s)) if wait else raw)

    async def delete(self, job_id: str) -> None:
        await self._do(operations.delete(f"/v1/jobs/{job_id}", self._patience_s))

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        return [Checkpoint.model_validate(raw) for raw in (await self._get(f"/v1/jobs/{job_id}/checkpoints"))["data"]]

    async def events(self, job_id: str, *, follow: bool = True) -> AsyncIterator[Event]:
        async for event in steps.aiterate(self._http, operations.events(job_id, self._patience_s, follow=follow)):
            yield event

    async def logs(self, job_id: str, tail: int = 1000) -> str:
        return await self._do(operations.logs(job_id, self._patience_s, tail))

    async def follow_logs(self, job_id: str, tail: int = 1000) -> AsyncIterator[str]:
        async for line in steps.aiterate(self._http, operations.follow_logs(job_id, self._patience_s, tail)):
            yield line

    async def report(self, job_id: str) -> Report:
        return Report(await self._get(f"/v1/jobs/{job_id}/report"))

    async def manifest(self, job_id: str) -> dict[str, Any]:
        return await self._get(f"/v1/jobs/{job_id}/manifest")

    async def files(self, job_id: str) -> list[Artifact]:
        return await self._do(operations.files(job_id, self._patience_s))

    async def download(self, job_id: str, out: Path | str, only: str | None = None, on_bytes: Progress = unseen) -> int:
        return await self._do(operations.download(job_id, Path(out), only, on_bytes, self._patience_s))

    async def upload_info(self, upload_id: str) -> Upload:
        return Upload.model_validate(await self._get(f"/v1/uploads/{upload_id}"))

    async def delete_upload(self, upload_id: str) -> None:
        await self._do(operations.delete(f"/v1/uploads/{upload_id}", self._patience_s))

    async def capabilities(self) -> Capabilities:
        return Capabilities.model_validate(await self._get("/v1/capabilities"))

    async def deliveries(
        self, job_id: str | None = None, status: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Delivery]:
        params = {"job": job_id, "status": status}
        pages = operations.pages("/v1/webhooks/deliveries", self._patience_s, params, limit)
        async for raw in steps.aiterate(self._http, pages):
            yield Delivery.model_validate(raw)

    async def delivery(self, delivery_id: str) -> Delivery:
        return Delivery.model_validate(await self._get(f"/v1/webhooks/deliveries/{delivery_id}"))

    async def redeliver(self, delivery_id: str) -> Delivery:
        return Delivery.model_validate(await self._post(f"/v1/webhooks/deliveries/{delivery_id}/redeliver"))

    async def webhook_secret(self, *, rotate: bool = False) -> WebhookSecret:
        secret = "/v1/webhooks/secret"  # noqa: S105
        raw = await (self._post(f"{secret}/rotate") if rotate else self._get(secret))
        return WebhookSecret.model_validate(raw)

    async def audit(self, limit: int = 100, before: str | None = None) -> list[AuditEntry]:
        raw = await self._get("/v1/audit", {"limit": limit, "before": before})
        return [AuditEntry.model_validate(entry) for entry in raw["data"]]

    async def _start(
        self, wanted: Wanted, token: str | None, idempotency_key: str | None, progress: bool, *, dry_run: bool
    ) -> dict[str, Any]:
        with upload_progress(progress) as on_bytes:
            return await self._do(
                operations.start(
                    self.server, self._patience_s, wanted, on_bytes,
                    token=token, idempotency_key=idempotency_key, dry_run=dry_run,
                )
            )  # fmt: skip

    async def _get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return await self._do(operations.fetch(path, self._patience_s, params))

    async def _post(self, path: str) -> dict[str, Any]:
        return await self._do(operations.post(path, self._patience_s))

    async def _do(self, operation: Steps[Result]) -> Result:
        return await steps.concurrent(self._http, operation)

    def _job(self, raw: dict[str, Any]) -> AsyncJob:
        job = AsyncJob.model_validate(raw)
        job._client = self
        return job
