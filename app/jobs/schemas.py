"""What requests and answers about jobs look like."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.jobs.record import JobStatus
from known_core.spec import EvaluationSettings, ForgettingSettings, NowcastSettings, OutputSettings, Settings

UploadId = Annotated[str, Field(pattern=r"^upl_[0-9a-f]{24}$", examples=["upl_0123456789abcdef01234567"])]


class DatasetInput(Settings):
    """A data set: an imagefolder zip, or parquet with the columns image and label."""

    upload_id: UploadId


class ModelInput(Settings):
    """A checkpoint: a zip of the folder save_pretrained wrote, or one safetensors file with ``config``."""

    upload_id: UploadId
    config: dict[str, Any] | None = Field(
        None, description="for a bare state dict: a registered architecture and its arguments"
    )


class EvaluationRequest(EvaluationSettings):
    downstream: DatasetInput | None = Field(None, description="what to fine-tune on; null: the held-out examples")


class EnhanceRequest(Settings):
    """A job to do."""

    model: ModelInput
    dataset: DatasetInput = Field(description="the data the model was trained on")
    task: Literal["image-classification"] = "image-classification"
    forgetting: ForgettingSettings = ForgettingSettings()
    nowcast: NowcastSettings = NowcastSettings()
    evaluation: EvaluationRequest = EvaluationRequest()
    output: OutputSettings = OutputSettings()
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="yours; kept and given back"
    )


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
            "metadata": {"experiment": "resnet-42"},
        },
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


class JobUrls(BaseModel):
    self: str
    events: str
    logs: str
    cancel: str
    report: str
    manifest: str
    artifacts: str


class JobView(BaseModel):
    """A job, as the API shows it. Times are RFC 3339, UTC."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    phase: str | None
    progress: Progress | None
    attempts: int
    request: dict[str, Any]
    resolved: dict[str, Any] = Field(description="what was understood of the inputs")
    metadata: dict[str, str]
    result: JobResult | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    urls: JobUrls


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
    "phase": "forgetting",
    "progress": {"phase": "forgetting", "step": 40, "total": 92, "eta_seconds": 3.1},
    "attempts": 1,
    "request": ENHANCE_EXAMPLES["state dict"]["value"],
    "resolved": {"task": "image-classification", "architecture": "small-cnn", "parameters": 57333},
    "metadata": {},
    "result": None,
    "error": None,
    "created_at": "2026-11-24T10:00:00.000Z",
    "started_at": "2026-11-24T10:00:01.250Z",
    "finished_at": None,
    "urls": {
        name: f"/v1/jobs/job_0123456789abcdef01234567{path}"
        for name, path in (
            ("self", ""), ("events", "/events"), ("logs", "/logs"), ("cancel", "/cancel"), ("report", "/report"),
            ("manifest", "/manifest"), ("artifacts", "/artifacts"),
        )
    },
}  # fmt: skip
