"""Settings of the workers."""

from pydantic import Field

from app.jobs.settings import StoreSettings


class WorkerSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    heartbeat_seconds: float = Field(10, gt=0, description="between two renewals of a lease")
    reap_seconds: float = Field(15, gt=0, description="between two looks for lost jobs")
    sweep_seconds: float = Field(600, gt=0, description="between two rounds of removing what nobody needs")
    work_retention_hours: float = Field(
        24, ge=0, description="the finished stages of a job are removed so long after it has ended"
    )
    nowcast_helpers: int = Field(0, ge=0, description="other workers that a job asks to write shards of its nowcast")
    kill_grace_seconds: float = Field(30, ge=0, description="between TERM and KILL of a trainer that is to stop")
