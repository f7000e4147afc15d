"""Settings that the API and the workers share: where the job records and the files are."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from app.storage.storage import Storage
    from known_core.hub import Hub


RUN = "run"


class HubAccess(BaseModel):
    """What a process needs to reach the Hub; the token shows in no representation.

    ``max_dataset_bytes`` is what one data set may take on disk.
    """

    endpoint: str | None
    token: SecretStr | None
    cache: Path
    max_cache_bytes: int
    max_dataset_bytes: int

    @property
    def secret(self) -> str | None:
        return self.token.get_secret_value() if self.token else None

    def open(self) -> "Hub":
        """The Hub, with its cache folder there."""
        from known_core.hub import Hub

        self.cache.mkdir(parents=True, exist_ok=True)
        return Hub(self.endpoint, self.secret, self.cache, self.max_cache_bytes)


def _embedded(data_dir: Path) -> str | None:
    """The store of a `known serve` on this data folder; the password in it changes at every start."""
    url = data_dir.expanduser() / "valkey" / "url"
    return url.read_text(encoding="utf-8") if url.is_file() else None


class StoreSettings(BaseSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    model_config = SettingsConfigDict(env_prefix="KNOWN_")

    data_dir: Path = Field(Path("~/.local/share/known"), description="uploads, job folders and artifacts")
    storage_url: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[\w!.*'()-]+)*/?$",
        description="s3://bucket/prefix: uploads and results are kept there, the data folder is each machine's own; "
        "null: the data folder alone, which all share",
    )
    storage_endpoint: str | None = Field(None, description="address of an S3 service; null: AWS's")
    storage_public_endpoint: str | None = Field(
        None, description="what stands for it in download addresses that clients are given; null: the same"
    )
    redis_url: str = Field(
        default_factory=lambda data: _embedded(data["data_dir"]) or "redis://127.0.0.1:6379/0",
        description="Redis or Valkey: broker, job store and event log; default: that of `known serve`, where it runs",
    )
    log_format: Literal["console", "json"] = Field("console", description="of the logs: for people, or JSON lines")
    lease_seconds: float = Field(60, gt=0, description="a worker silent for this long has lost its job")
    job_retention_days: float = Field(
        30, ge=0, description="a job is deleted so long after it has ended, with its files; 0: never"
    )
    max_running_jobs: int = Field(0, ge=0, description="of a tenant at once; 0: any number")
    audit_entries: int = Field(100_000, ge=1, description="kept of each tenant, about; older ones go")
    max_attempts: int = Field(3, ge=1, description="times a job is started before it fails with worker_died")

    upload_expiry_seconds: float = Field(
        86400, gt=0, description="an incomplete upload without a byte for so long goes"
    )
    upload_retention_days: float = Field(30, ge=0, description="an upload that no job uses for so long goes; 0: never")

    hub_endpoint: str | None = Field(None, description="address of the Hub; null: HF_ENDPOINT or huggingface.co")
    hub_token: SecretStr | None = Field(None, description="used where a request brings none")
    hub_cache_dir: Path | None = Field(None, description="what jobs fetch from the Hub; null: hub in the data folder")
    hub_cache_bytes: int = Field(100 << 30, ge=0, description="what the cache is trimmed to")
    max_dataset_bytes: int = Field(50 << 30, ge=1, description="a larger data set on the Hub is sampled")
    secret_key: SecretStr | None = Field(
        None, description="Fernet key that seals tokens of requests; null: a key file in the data folder"
    )

    webhook_allow_http: bool = Field(False, description="webhooks may go to http beside https: for development")
    webhook_allowed_hosts: str = Field(
        "", description="names, addresses and networks, by commas, that webhooks may reach although not public"
    )

    @field_validator("storage_url", "storage_endpoint", "storage_public_endpoint", mode="before")
    @classmethod
    def _none_where_empty(cls, value: object) -> object:
        return value or None  # docker-compose passes on what is not set as an empty text

    def storage(self) -> "Storage | None":
        """The bucket; None where the data folder is shared by everybody."""
        if self.storage_url is None:
            return None
        from app.storage.storage import Storage

        return Storage(self.storage_url, self.storage_endpoint, self.storage_public_endpoint)

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    def hub_access(self, token: str | None) -> HubAccess:
        """How to reach the Hub, with a request's token or with the server's own."""
        return HubAccess(
            endpoint=self.hub_endpoint,
            token=SecretStr(token) if token else self.hub_token,
            cache=self.hub_cache_dir.expanduser().resolve() if self.hub_cache_dir else self.data / "hub",
            max_cache_bytes=self.hub_cache_bytes,
            max_dataset_bytes=self.max_dataset_bytes,
        )

    def job_folder(self, job_id: str) -> Path:
        return self.data / "jobs" / job_id

    def run_folder(self, job_id: str) -> Path:
        """What the trainer writes: all else in the job's folder it can only read."""
        return self.job_folder(job_id) / RUN
