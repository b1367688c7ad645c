"""An application whose contract's own code fails."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, field_validator

from ackline.producer import message


@message("test.odd")
class Odd(BaseModel):
    """Its validator raises what no validator should."""

    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> Any:
        return {"known": "known"}[name]
