"""What requests and answers about jobs look like."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.jobs.placement import Device
from app.jobs.record import JobStatus
from app.webhooks.schemas import WebhookRequest
from known_core.spec import (
    DataSettings,
    EvaluationSettings,
    ForgettingSettings,
    HubTarget,
    NowcastSettings,
    OutputSettings,
    Settings,
)

UploadId = Annotated[str, Field(pattern=r"^upl_[0-9a-f]{24}$", examples=["upl_0123456789abcdef01234567"])]


class HubRepo(Settings):
    """A repository on the Hugging Face Hub; its revision is resolved to a commit when the job is made."""

    repo_id: str = Field(min_length=1, max_length=200, examples=["user/resnet"])
    revision: str | None = Field(None, min_length=1, max_length=255, description="branch, tag, commit or refs/pr/N")


class _Input(Settings):
    """Exactly one of an upload and a repository."""

    upload_id: UploadId | None = None
    hub: HubRepo | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.upload_id is None) == (self.hub is None):
            raise ValueError("give either upload_id or hub")
        return self


class DatasetInput(DataSettings, _Input):
    """A data set: an archive or a file that was uploaded, or a repository."""


class StateInput(_Input):
    """A checkpoint of which only names, shapes and values count."""


class ModelInput(_Input):
    """A checkpoint: what save_pretrained wrote, zipped or on the Hub, or one safetensors file with ``config``."""

    config: dict[str, Any] | None = Field(
        None, description="for a bare state dict: its architecture and arguments, see the guide"
    )
    base: StateInput | None = Field(None, description="for a LoRA adapter: the model it was trained on")


class EvaluationRequest(EvaluationSettings):
    downstream: DatasetInput | None = Field(None, description="what to fine-tune on; null: the held-out examples")


class Limits(Settings):
    """When to give up."""

    max_gpu_seconds: int | None = Field(
        None, ge=1, le=10**9, description="time a worker may spend on the job, all attempts together; null: any"
    )


class EnhanceRequest(Settings):
    """A job to do: a model with its data, or a trajectory of five states."""

    model: ModelInput | None = None
    dataset: DatasetInput | None = Field(None, description="the data the model was trained on")
    trajectory: tuple[StateInput, ...] | None = Field(
        None, min_length=5, max_length=5, description="states of one training, the most recent first: no data is needed"
    )
    task: str | None = Field(None, max_length=64, description="null: what the checkpoint's config says")
    forgetting: ForgettingSettings = ForgettingSettings()
    nowcast: NowcastSettings = NowcastSettings()
    evaluation: EvaluationRequest = EvaluationRequest()
    output: OutputSettings = OutputSettings()
    device: Device = Field(
        "auto", description="where to run: auto is a GPU where a worker has one that is large enough, else a CPU"
    )
    limits: Limits = Limits()
    webhook: WebhookRequest | None = Field(None, description="whom to tell when the job has ended")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="yours; kept and given back"
    )

    @model_validator(mode="after")
    def _model_or_trajectory(self) -> Self:
        if self.trajectory is None and (self.model is None or self.dataset is None):
            raise ValueError("give model and dataset, or a trajectory")
        if self.trajectory is not None and (self.model or self.dataset or self.evaluation.downstream):
            raise ValueError("a trajectory stands for itself: leave out model, dataset and evaluation.downstream")
        return self


class RepublishRequest(Settings):
    """Where to put a finished job's result."""

    hub: HubTarget | None = Field(None, description="null: where the job's request said")
    candidate: str | None = Field(None, max_length=64, description="null: the selected one")


ENHANCE_EXAMPLES = {
    "state dict": {
        "summary": "a plain state dict of a registered architecture",
        "value": {
            "model": {
                "upload_id": "upl_0123456789abcdef01234567",
                "config": {"architecture": "small-cnn", "num_classes": 10, "in_chans": 1, "img_size": 28},
            },
            "dataset": {"upload_id": "upl_89abcdef0123456789abcdef"},
            "forgetting": {"rate": 0.5, "epochs_per_stage": 4, "learning_rate": 0.001},
        },
    },
    "transformers": {
        "summary": "a transformers checkpoint, with data to fine-tune on",
        "value": {
            "model": {"upload_id": "upl_0123456789abcdef01234567"},
            "dataset": {"upload_id": "upl_89abcdef0123456789abcdef"},
            "evaluation": {"downstream": {"upload_id": "upl_456789abcdef012345678901"}, "seeds": 5},
            "webhook": {"url": "https://example.com/hook", "events": ["completed"]},
            "metadata": {"experiment": "resnet-42"},
        },
    },
    "hub": {
        "summary": "from the Hub and back to it",
        "value": {
            "model": {"hub": {"repo_id": "user/resnet"}},
            "dataset": {"hub": {"repo_id": "user/data", "revision": "main"}, "split": "train"},
            "output": {"hub": {"repo_id": "user/resnet-know", "private": True}},
        },
    },
    "trajectory": {
        "summary": "five states of any architecture, without data",
        "value": {
            "trajectory": [{"hub": {"repo_id": "user/gpt", "revision": f"step-{step}"}} for step in range(5, 0, -1)]
        },
    },
}


REPUBLISH_EXAMPLES = {
    "again": {"summary": "where the job's request said", "value": {}},
    "elsewhere": {
        "summary": "another candidate, as a pull request",
        "value": {"hub": {"repo_id": "user/resnet-x4", "create_pr": True}, "candidate": "x4"},
    },
}


class Progress(BaseModel):
    phase: str
    step: int
    total: int
    eta_seconds: float | None


class JobError(BaseModel):
    code: str
    message: str
    hint: str
    retryable: bool


class JobResult(BaseModel):
    selected: str = Field(description='the candidate to use; "unchanged" where nothing was gained')
    conclusion: str
    artifacts: str
    report: str
    manifest: str
    hub_url: str | None = Field(None, description="the repository the result was put into")
    commit: str | None = None
    pr_url: str | None = None
    publish_error: JobError | None = Field(
        None, description="why it is not on the Hub; the artifacts are here, and republish tries again"
    )


class SecondsRange(BaseModel):
    low: float
    expected: float
    high: float


class BytesRange(BaseModel):
    low: int
    expected: int
    high: int


class EstimateView(BaseModel):
    """What a job will take, from a calibration of the device; every job measured lay between low and high."""

    seconds: SecondsRange
    memory_bytes: BytesRange = Field(description="at most at once")
    gpu_memory_bytes: BytesRange | None = Field(description="null: no GPU")
    disk_bytes: BytesRange
    by_phase: dict[str, float] = Field(description="seconds of each phase, as expected")
    basis: str = Field(description="which device, calibrated when")


class ActualCost(BaseModel):
    seconds: float = Field(description="time that workers spent on the job, in attempts that have ended")
    gpu_seconds: float = Field(description="the same, where it ran on a GPU")
    memory_bytes: int | None = Field(description="at most at once, of the last trainer that came to an end")
    gpu_memory_bytes: int | None = Field(description="likewise, of the GPU's")
    disk_bytes: int | None = Field(description="what the trainer's files took at its end")


class Cost(BaseModel):
    estimated: EstimateView | None = Field(description="made when the job was queued; null: nothing was calibrated")
    actual: ActualCost


class JobUrls(BaseModel):
    self: str
    events: str
    logs: str
    cancel: str
    pause: str
    resume: str
    republish: str
    checkpoints: str
    report: str
    manifest: str
    artifacts: str


class DryRun(BaseModel):
    """What a job would be, had it been queued."""

    object: Literal["dry_run"] = "dry_run"
    resolved: dict[str, Any] = Field(description="what was understood of the inputs: task, columns, classes, commits")
    estimate: EstimateView | None = Field(description="what it would take; null where there is none, see no_estimate")
    no_estimate: Literal["no_calibration", "model_not_counted", "inputs_not_sampled"] | None = Field(
        description="why there is none: no worker has calibrated its device yet; the network needs values to run; the "
        "data could not be looked at"
    )


class JobView(BaseModel):
    """A job, as the API shows it. Times are RFC 3339, UTC."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    pausing: bool = Field(False, description="whether a pause was asked for, and its worker is about to let go of it")
    waiting_for: str | None = Field(
        None, description="where it waits and no living worker can take it: what it needs that none has"
    )
    phase: str | None
    progress: Progress | None
    attempts: int
    cost: Cost
    request: dict[str, Any]
    resolved: dict[str, Any] = Field(description="what was understood of the inputs")
    metadata: dict[str, str]
    result: JobResult | None
    republishing: bool = Field(False, description="whether the result is being put on the Hub again")
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    expires_at: str | None = Field(description="when it is deleted with its files; null: not set")
    urls: JobUrls


class CheckpointView(BaseModel):
    """A stage that is finished."""

    stage: str = Field(description="such as fan-0, the first training of a fan")
    seconds: float = Field(description="what it took")
    bytes: int


class CheckpointList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CheckpointView]


class JobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobView]
    first_id: str | None
    last_id: str | None
    has_more: bool


JOB_EXAMPLE: dict[str, Any] = {
    "id": "job_0123456789abcdef01234567",
    "object": "job",
    "status": "running",
    "pausing": False,
    "waiting_for": None,
    "phase": "forgetting",
    "progress": {"phase": "forgetting", "step": 40, "total": 92, "eta_seconds": 3.1},
    "attempts": 1,
    "cost": {
        "estimated": {
            "seconds": {"low": 21.0, "expected": 32.3, "high": 48.4},
            "memory_bytes": {"low": 922000000, "expected": 1153000000, "high": 1556000000},
            "gpu_memory_bytes": None,
            "disk_bytes": {"low": 3420000, "expected": 3800000, "high": 4180000},
            "by_phase": {"starting": 8.6, "downloading": 0.2, "evaluating_before": 3.6, "forgetting": 2.0,
                         "nowcasting": 0.0, "calibrating": 0.1, "evaluating_after": 17.7, "packaging": 0.1},
            "basis": "AMD EPYC, 2 cores, calibrated 2026-11-24T09:58:12Z with torch 2.14.1",
        },
        "actual": {"seconds": 0.0, "gpu_seconds": 0.0, "memory_bytes": None, "gpu_memory_bytes": None,
                   "disk_bytes": None},
    },
    "request": ENHANCE_EXAMPLES["state dict"]["value"],
    "resolved": {"task": "image-classification", "architecture": "small-cnn", "parameters": 57333},
    "metadata": {},
    "result": None,
    "republishing": False,
    "error": None,
    "created_at": "2026-11-24T10:00:00.000Z",
    "started_at": "2026-11-24T10:00:01.250Z",
    "finished_at": None,
    "expires_at": None,
    "urls": {
        name: f"/v1/jobs/job_0123456789abcdef01234567{path}"
        for name, path in (
            ("self", ""), ("events", "/events"), ("logs", "/logs"), ("cancel", "/cancel"), ("pause", "/pause"),
            ("resume", "/resume"), ("republish", "/republish"), ("checkpoints", "/checkpoints"), ("report", "/report"),
            ("manifest", "/manifest"), ("artifacts", "/artifacts"),
        )
    },
}  # fmt: skip
