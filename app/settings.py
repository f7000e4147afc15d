"""Settings of the API."""

from pydantic import Field

from app.jobs.settings import StoreSettings


class AppSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    max_upload_bytes: int = Field(20 << 30, ge=1, description="a larger upload is refused")
    max_tenant_bytes: int = Field(0, ge=0, description="of all uploads of a tenant; 0: any number")
    min_free_bytes: int = Field(1 << 30, ge=0, description="uploads leave so much of the disk free")
    upload_idle_seconds: float = Field(30, gt=0, description="an upload's request without a byte for so long is closed")
    download_url_seconds: int = Field(3600, ge=1, description="how long a signed address of a file is good")
    inspection_timeout_seconds: float = Field(120, gt=0, description="time a request's inputs may take to check")
    max_wait_seconds: int = Field(60, ge=0, description="longest ?wait= that is honoured")
