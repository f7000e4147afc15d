"""Settings of the workers."""

from pydantic import Field

from app.jobs.settings import StoreSettings


class WorkerSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    heartbeat_seconds: float = Field(10, gt=0, description="between two renewals of a lease")
    reap_seconds: float = Field(15, gt=0, description="between two looks for lost jobs")
    nowcast_helpers: int = Field(0, ge=0, description="other workers that a job asks to write shards of its nowcast")
    webhook_seconds: float = Field(2, gt=0, description="between two looks for webhooks to deliver")
    webhook_retry_scale: float = Field(1, ge=0, description="multiplies the waits between attempts at a webhook")
    kill_grace_seconds: float = Field(30, ge=0, description="between TERM and KILL of a trainer that is to stop")
