"""Settings of the API."""

from pydantic import Field

from app.jobs.settings import StoreSettings


class AppSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    max_upload_bytes: int = Field(20 << 30, ge=1, description="a larger upload is refused")
    max_request_bytes: int = Field(8 << 20, ge=1, description="of the body of any request but uploads")
    inspection_timeout_seconds: float = Field(120, gt=0, description="time a request's inputs may take to check")
    max_wait_seconds: int = Field(60, ge=0, description="longest ?wait= that is honoured")
