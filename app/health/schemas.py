"""What the probes answer."""

from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(Health):
    workers: int
    access: Literal["open", "keys"] = Field(description="open: no API key is asked for, this machine alone is answered")
