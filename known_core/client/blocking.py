"""The client for scripts and notebooks: every call waits for its answer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import PrivateAttr

from known_core.client import operations, steps
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


class Job(JobFields):
    """A job, and what can be done with it. Its fields are those of the moment: :meth:`refresh` asks again."""

    _client: "Client" = PrivateAttr()

    def refresh(self) -> "Job":
        """The job as it is now."""
        return self._client.job(self.id)

    def wait(self, timeout_s: float | None = None, *, progress: bool = True, check: bool = True) -> "Job":
        """Wait for the job's end, with a bar for each phase in terminals and notebooks; returns the job.

        Ctrl-C, or "interrupt" in a notebook, ends the waiting and never the job.

        Args:
            timeout_s: seconds after which :class:`~known_core.client.errors.WaitTimeout` is raised; None: none.
            check: raise :class:`~known_core.client.errors.JobFailed` where the job failed or was canceled.
        """
        return self._client.wait(self.id, timeout_s, progress=progress, check=check)

    def report(self) -> Report:
        """The before/after report. Raises: ResultNotReady before the job has succeeded."""
        return self._client.report(self.id)

    def download(self, out: Path | str, only: str | None = None, on_bytes: Progress = unseen) -> int:
        """Fetch the files and verify every sha256, see :meth:`Client.download`."""
        return self._client.download(self.id, out, only, on_bytes)

    def cancel(self) -> "Job":
        """End the job; what it has made so far is gone."""
        return self._client.cancel(self.id)

    def pause(self) -> "Job":
        """Stop the job and keep what is finished; its worker is free within seconds."""
        return self._client.pause(self.id)

    def resume(self) -> "Job":
        """Go on with a paused job."""
        return self._client.resume(self.id)

    def republish(
        self,
        push: str | Mapping[str, Any] | None = None,
        candidate: str | None = None,
        *,
        token: str | None = None,
        wait: bool = True,
    ) -> "Job":
        """Put the result on the Hub, see :meth:`Client.republish`."""
        return self._client.republish(self.id, push, candidate, token=token, wait=wait)

    def delete(self) -> None:
        """Delete a job that has ended, with its files."""
        self._client.delete(self.id)

    def events(self, *, follow: bool = True) -> Iterator[Event]:
        """What happens to the job, see :meth:`Client.events`."""
        return self._client.events(self.id, follow=follow)

    def logs(self, tail: int = 1000) -> str:
        """The last lines that the job's process printed."""
        return self._client.logs(self.id, tail)

    def follow_logs(self, tail: int = 1000) -> Iterator[str]:
        """The log's last lines, and what is added, line by line, until the job has ended."""
        return self._client.follow_logs(self.id, tail)

    def files(self) -> list[Artifact]:
        """The result's files, with their sha256 and addresses that can be given to others."""
        return self._client.files(self.id)

    def manifest(self) -> dict[str, Any]:
        """What was used and what was made: enough to run the job again and to verify it."""
        return self._client.manifest(self.id)

    def checkpoints(self) -> list[Checkpoint]:
        """The stages that are finished and still kept."""
        return self._client.checkpoints(self.id)


class Client:
    """Talks to one service. Thread-safe, and good for ``with``.

    Args:
        server: its address; None: KNOWN_SERVER, else ``http://127.0.0.1:8000``.
        api_key: of a service that asks for one; None: KNOWN_API_KEY, where it is set.
        patience_s: how long a server that has answered may be away, or ask to slow down, before it is given up, in
            seconds.

    Every method raises a :class:`~known_core.errors.KnownError`: for what the server says or does, one of the classes
    in :mod:`known_core.client.errors`, by its code.
    """

    def __init__(self, server: str | None = None, api_key: str | None = None, patience_s: float = 120) -> None:
        self._patience_s = patience_s
        options = connection(server, api_key)
        self.server = str(options["base_url"])
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # starting jobs

    def enhance(
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
    ) -> Job:
        """Start a job.

        A model or a data set is a path (a folder, a zip, or a file: it is uploaded), ``"hub:user/name[@revision]"``, or
        the API's own form, in which ``"path"`` may stand for an upload:
        ``{"path": "model.safetensors", "config": {"architecture": "small-cnn"}}``.

        Args:
            request: the API's own request (docs/api.md), to begin with; what is named beside it goes over it.
            trajectory: five states of one training, the most recent first, instead of model and data set.
            downstream: data to fine-tune on in the before/after probe.
            token: of the Hub, for this job.
            idempotency_key: a call with the same key is the same job, for two days; None: a new one, so that a request
                whose connection breaks is sent again and still starts one job.
            progress: show uploads, in terminals and notebooks.
            settings: whole sections (``forgetting={...}``), or settings by their own names (``epochs_per_stage=4``,
                ``seeds=5``, ``select="x4"``, ``push="hub:user/name"``).
        """
        wanted = Wanted(request, model, dataset, trajectory, downstream, settings)
        return self._job(self._start(wanted, token, idempotency_key, progress, dry_run=False))

    def estimate(
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
        """What a job would be and take, without starting it (a dry run). Arguments as for :meth:`enhance`."""
        wanted = Wanted(request, model, dataset, trajectory, downstream, settings)
        return Estimate.model_validate(self._start(wanted, token, None, progress, dry_run=True))

    def upload(self, path: Path | str, on_bytes: Progress = unseen) -> str:
        """Send a file, or a folder as a zip; returns the upload's id. The server checks the sha256.

        What was interrupted goes on where it was, also in the next call with the same file.
        """
        return self._do(upload_path(self.server, Path(path), on_bytes, Patience(self._patience_s)))

    # jobs

    def job(self, job_id: str) -> Job:
        """A job, as it is now."""
        return self._job(self._get(f"/v1/jobs/{job_id}"))

    def jobs(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Jobs, newest first; the next page is fetched when it is reached.

        Args:
            status: only those in this state.
            limit: at most so many.
        """
        pages = operations.pages("/v1/jobs", self._patience_s, {"status": status}, limit)
        return map(self._job, steps.iterate(self._http, pages))

    def job_page(self, limit: int = 20, after: str | None = None, status: str | None = None) -> JobPage[Job]:
        """One page of jobs; go on with ``after=page.last_id`` while ``page.has_more``."""
        raw = self._get("/v1/jobs", {"limit": limit, "after": after, "status": status})
        return JobPage(tuple(map(self._job, raw["data"])), raw["last_id"], raw["has_more"])

    def wait(self, job_id: str, timeout_s: float | None = None, *, progress: bool = True, check: bool = True) -> Job:
        """Wait for a job's end, see :meth:`Job.wait`."""
        with job_progress(job_id, progress) as draw:
            return self._job(self._do(operations.wait(job_id, self._patience_s, timeout_s, check, draw)))

    def cancel(self, job_id: str) -> Job:
        """End a job; what it has made so far is gone."""
        return self._job(self._post(f"/v1/jobs/{job_id}/cancel"))

    def pause(self, job_id: str) -> Job:
        """Ask a job to stop and keep what is finished; returns it, ``pausing`` until its worker has let it go."""
        return self._job(self._post(f"/v1/jobs/{job_id}/pause"))

    def resume(self, job_id: str) -> Job:
        """Go on with a paused job."""
        return self._job(self._post(f"/v1/jobs/{job_id}/resume"))

    def republish(
        self,
        job_id: str,
        push: str | Mapping[str, Any] | None = None,
        candidate: str | None = None,
        *,
        token: str | None = None,
        wait: bool = True,
    ) -> Job:
        """Put a finished job's result on the Hub, again or elsewhere.

        Args:
            push: ``"hub:user/name[@branch]"``, or the API's ``hub`` object; None: where the job's request said.
            candidate: such as "x4"; None: the selected one.
            token: of the Hub, which may write.
            wait: until it is there, or has failed (``job.result.publish_error``).
        """
        body, headers = operations.republish_request(push, candidate), operations.token_header(token)
        raw = self._do(operations.post(f"/v1/jobs/{job_id}/republish", self._patience_s, body, headers))
        return self._job(self._do(operations.republished(job_id, self._patience_s)) if wait else raw)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its log and files; what was published stays on the Hub."""
        self._do(operations.delete(f"/v1/jobs/{job_id}", self._patience_s))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The stages of a job that are finished and still kept: what it goes on from."""
        return [Checkpoint.model_validate(raw) for raw in self._get(f"/v1/jobs/{job_id}/checkpoints")["data"]]

    def events(self, job_id: str, *, follow: bool = True) -> Iterator[Event]:
        """The job's events from its first on, as they happen, until it has ended. Stopping stops nothing else.

        A server that goes away for a while (a deploy) ends nothing: what was missed follows.

        Args:
            follow: until the job has ended; else what has happened so far.
        """
        return steps.iterate(self._http, operations.events(job_id, self._patience_s, follow=follow))

    def logs(self, job_id: str, tail: int = 1000) -> str:
        """The last lines that a job's process printed."""
        return self._do(operations.logs(job_id, self._patience_s, tail))

    def follow_logs(self, job_id: str, tail: int = 1000) -> Iterator[str]:
        """A log's last lines, and what is added, line by line, until the job has ended."""
        return steps.iterate(self._http, operations.follow_logs(job_id, self._patience_s, tail))

    # results

    def report(self, job_id: str) -> Report:
        """The before/after report. Raises: ResultNotReady before the job has succeeded."""
        return Report(self._get(f"/v1/jobs/{job_id}/report"))

    def manifest(self, job_id: str) -> dict[str, Any]:
        """What was used and what was made: enough to run the job again and to verify it."""
        return self._get(f"/v1/jobs/{job_id}/manifest")

    def files(self, job_id: str) -> list[Artifact]:
        """The result's files, with their sha256 and addresses that can be given to others."""
        return self._do(operations.files(job_id, self._patience_s))

    def download(self, job_id: str, out: Path | str, only: str | None = None, on_bytes: Progress = unseen) -> int:
        """Fetch a job's files into a folder and verify every sha256. What was interrupted goes on where it was.

        Args:
            only: one candidate's folder (the report and the manifest come along), or None for everything.

        Returns:
            The number of files verified.
        """
        return self._do(operations.download(job_id, Path(out), only, on_bytes, self._patience_s))

    # the service

    def upload_info(self, upload_id: str) -> Upload:
        """An upload: how much of it is here."""
        return Upload.model_validate(self._get(f"/v1/uploads/{upload_id}"))

    def delete_upload(self, upload_id: str) -> None:
        """Delete an upload. Raises: UploadInUse while a job that has not ended uses it."""
        self._do(operations.delete(f"/v1/uploads/{upload_id}", self._patience_s))

    def capabilities(self) -> Capabilities:
        """What the service can do, and with which workers."""
        return Capabilities.model_validate(self._get("/v1/capabilities"))

    def deliveries(
        self, job_id: str | None = None, status: str | None = None, limit: int | None = None
    ) -> Iterator[Delivery]:
        """Webhook deliveries, newest first, with every attempt; of one job, or in one state."""
        params = {"job": job_id, "status": status}
        pages = operations.pages("/v1/webhooks/deliveries", self._patience_s, params, limit)
        return map(Delivery.model_validate, steps.iterate(self._http, pages))

    def delivery(self, delivery_id: str) -> Delivery:
        """One delivery."""
        return Delivery.model_validate(self._get(f"/v1/webhooks/deliveries/{delivery_id}"))

    def redeliver(self, delivery_id: str) -> Delivery:
        """Deliver a webhook again, now."""
        return Delivery.model_validate(self._post(f"/v1/webhooks/deliveries/{delivery_id}/redeliver"))

    def webhook_secret(self, *, rotate: bool = False) -> WebhookSecret:
        """What webhooks are signed with, made on first use; or a new one in its place."""
        secret = "/v1/webhooks/secret"  # noqa: S105
        return WebhookSecret.model_validate(self._post(f"{secret}/rotate") if rotate else self._get(secret))

    def audit(self, limit: int = 100, before: str | None = None) -> list[AuditEntry]:
        """The tenant's requests that changed something or were refused, newest first. Needs the scope admin."""
        raw = self._get("/v1/audit", {"limit": limit, "before": before})
        return [AuditEntry.model_validate(entry) for entry in raw["data"]]

    def _start(
        self, wanted: Wanted, token: str | None, idempotency_key: str | None, progress: bool, *, dry_run: bool
    ) -> dict[str, Any]:
        with upload_progress(progress) as on_bytes:
            return self._do(
                operations.start(
                    self.server, self._patience_s, wanted, on_bytes,
                    token=token, idempotency_key=idempotency_key, dry_run=dry_run,
                )
            )  # fmt: skip

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._do(operations.fetch(path, self._patience_s, params))

    def _post(self, path: str) -> dict[str, Any]:
        return self._do(operations.post(path, self._patience_s))

    def _do(self, operation: Steps[Result]) -> Result:
        return steps.blocking(self._http, operation)

    def _job(self, raw: dict[str, Any]) -> Job:
        job = Job.model_validate(raw)
        job._client = self
        return job
