"""Settings that the API and the workers share: where the job records and the files are."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    model_config = SettingsConfigDict(env_prefix="KNOWN_")

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey: broker, job store and event log")
    data_dir: Path = Field(Path("~/.local/share/known"), description="uploads, job folders and artifacts")
    lease_seconds: float = Field(60, gt=0, description="a worker silent for this long has lost its job")
    max_attempts: int = Field(3, ge=1, description="times a job is started before it fails with worker_died")

    @property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    def job_folder(self, job_id: str) -> Path:
        return self.data / "jobs" / job_id
