"""What a service answers, typed. Fields that a newer service adds are kept in ``raw`` and break nothing."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, model_validator

JobT = TypeVar("JobT", covariant=True)
ENDED = ("succeeded", "failed", "canceled")  # states that are final


class Record(BaseModel):
    """An answer: its fields as attributes, and all of it, as it came, by ``record["field"]`` and as ``raw``."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        record = handler(data)
        if isinstance(data, dict):
            record._raw = cls._whole(data)
        return record

    @classmethod
    def _whole(cls, data: dict[str, Any]) -> dict[str, Any]:
        return data

    @property
    def raw(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return self._raw

    def __getitem__(self, name: str) -> Any:
        return self._raw[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._raw.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self._raw == other._raw

    __hash__ = None  # type: ignore[assignment]


class Progress(Record):
    """Of the phase that a job is in."""

    phase: str
    step: int
    total: int
    eta_seconds: float | None = None


class JobError(Record):
    """Why a job failed, or was not published."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class JobResult(Record):
    """What a job that succeeded has made."""

    selected: str
    conclusion: str
    hub_url: str | None = None
    commit: str | None = None
    pr_url: str | None = None
    publish_error: JobError | None = None


class Range(Record):
    """An estimate with its bounds."""

    low: float
    expected: float
    high: float


class Resources(Record):
    """What a job will take. Bytes are on the worker; ``gpu_memory_bytes`` is None where there is no GPU."""

    seconds: Range | None = None
    memory_bytes: Range | None = None
    gpu_memory_bytes: Range | None = None
    disk_bytes: Range | None = None
    by_phase: dict[str, float] = {}  # seconds, as expected
    basis: str = ""


class ActualCost(Record):
    """What a job took: time of workers, in attempts that have ended, and the most that it held at once."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    disk_bytes: int | None = None


class Cost(Record):
    """What was expected when the job was queued, None where nothing was calibrated, and what it took so far."""

    estimated: Resources | None = None
    actual: ActualCost = ActualCost()


class JobFields(Record):
    """A job, as it was when it was asked for."""

    id: str
    status: str
    phase: str | None = None
    pausing: bool = False
    waiting_for: str | None = None
    progress: Progress | None = None
    attempts: int = 0
    cost: Cost = Cost()
    request: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    result: JobResult | None = None
    republishing: bool = False
    error: JobError | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has succeeded, failed or been canceled, for good."""
        return self.status in ENDED


@dataclass(frozen=True)
class JobPage(Generic[JobT]):
    """Jobs, newest first; go on with ``after=last_id`` while ``has_more``."""

    data: tuple[JobT, ...]
    last_id: str | None
    has_more: bool


class Event(Record):
    """Something that happened to a job; what, is in ``event["field"]`` by its type (docs/api.md)."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def at(self) -> datetime:
        """When it happened, UTC."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    @classmethod
    def _whole(cls, data: dict[str, Any]) -> dict[str, Any]:
        whole: dict[str, Any] = data["data"]
        return whole


class EventPage(Record):
    """Events in their order; ``ended`` says that none follows."""

    data: tuple[Event, ...] = ()
    last_id: str | None = None
    ended: bool = False


class Estimate(Record):
    """A job that was not started: what was understood of its inputs, and what it would take."""

    resolved: dict[str, Any]
    estimate: Resources | None = None
    no_estimate: str | None = None  # why there is none


class Artifact(Record):
    """A file of a job's result."""

    path: str
    bytes: int
    sha256: str
    url: str
    download_url: str | None = None
    expires_at: datetime | None = None


class Checkpoint(Record):
    """A stage that is finished: what a job goes on from."""

    stage: str
    seconds: float
    bytes: int


class Upload(Record):
    """A file that was sent, or is being sent."""

    id: str
    status: str
    filename: str
    bytes: int | None = None
    received: int = 0
    sha256: str | None = None


class Attempt(Record):
    """One try at telling a receiver."""

    at: datetime
    status: int | None = None
    error: str | None = None
    duration_ms: int = 0


class Delivery(Record):
    """What a webhook's receiver was told, or is to be told."""

    id: str
    job_id: str
    event: str
    url: str
    status: str
    attempts: tuple[Attempt, ...] = ()
    created_at: datetime | None = None
    next_attempt_at: datetime | None = None


class WebhookSecret(Record):
    """What deliveries are signed with."""

    secret: str
    created_at: datetime | None = None
    previous_expires_at: datetime | None = None


class Worker(Record):
    """A worker and its machine."""

    name: str
    queues: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    cores: int | None = None
    torch: str = ""


class Capabilities(Record):
    """What a service can do, and with which machines."""

    version: str
    access: str = ""
    tasks: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    hypermodels: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    workers: tuple[Worker, ...] = ()
    limits: dict[str, Any] = {}


class AuditEntry(Record):
    """A request that changed something or was refused."""

    id: str
    method: str | None = None
    path: str | None = None
    status: int | None = None
    code: str | None = None
