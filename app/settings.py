"""Settings of the API."""

from typing import Literal

from limits import parse
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.jobs.settings import StoreSettings


class AppSettings(StoreSettings):
    """Read from the environment, prefix ``KNOWN_``."""

    access: Literal["open", "keys"] = Field(
        "open", description="open: no key is asked for, this machine alone is answered"
    )
    session_seconds: int = Field(43_200, ge=60, description="how long a browser stays logged in")
    rate_limit: str = Field("600/minute", description="requests of a tenant; empty: any number")
    key_failure_limit: str = Field("30/minute", description="requests with a wrong key from one address")
    metrics_token: SecretStr | None = Field(
        None, min_length=16, description="who sends it as a bearer token reads /metrics; null: open mode alone does"
    )
    max_queued_jobs: int = Field(0, ge=0, description="of a tenant; 0: any number")
    max_upload_bytes: int = Field(20 << 30, ge=1, description="a larger upload is refused")
    max_tenant_bytes: int = Field(0, ge=0, description="of all uploads of a tenant; 0: any number")
    min_free_bytes: int = Field(1 << 30, ge=0, description="uploads leave so much of the disk free")
    upload_idle_seconds: float = Field(30, gt=0, description="an upload's request without a byte for so long is closed")
    download_url_seconds: int = Field(3600, ge=1, description="how long a signed address of a file is good")
    max_request_bytes: int = Field(8 << 20, ge=1, description="of the body of any request but uploads")
    inspection_timeout_seconds: float = Field(120, gt=0, description="time a request's inputs may take to check")
    max_wait_seconds: int = Field(60, ge=0, description="longest ?wait= that is honoured")

    @field_validator("metrics_token", mode="before")
    @classmethod
    def _no_token_where_empty(cls, value: object) -> object:
        return value or None  # docker-compose passes on what is not set as an empty text

    @field_validator("rate_limit", "key_failure_limit")
    @classmethod
    def _is_a_rate(cls, value: str, info: ValidationInfo) -> str:
        if value or info.field_name != "rate_limit":
            parse(value)
        return value
