"""Whether everything that was accepted is somewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from ackline.dlq.api.access import Acting
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import Body, Name, Time
from ackline.dlq.ledger import Account, Counted

router = APIRouter(tags=["ledger"])

#: Seconds to look again while it cannot be told whether something is missing: as asked for, and at most.
_WAIT, _LONGEST = 15.0, 60.0


class Window(Body):
    """Of what was accepted when, for whom."""

    since: Time | None = Field(default=None, description="Included; else from the beginning on.")
    until: Time | None = Field(default=None, description="Not included; else up to now.")
    consumer: Name | None = Field(default=None, description="Only this one; empty: of what no consumer takes.")
    wait: float = Field(
        default=_WAIT,
        ge=0,
        le=_LONGEST,
        allow_inf_nan=False,
        description="Seconds to look again while it cannot be told whether something is missing.",
    )


class Candidate(BaseModel):
    """A delivery that cannot be found, and what was last known of it."""

    model_config = ConfigDict(from_attributes=True)

    message_id: str
    consumer: str
    type: str
    accepted_at: datetime
    last: str


class Balance(BaseModel):
    """What became of what was accepted."""

    model_config = ConfigDict(from_attributes=True)

    adds_up: bool = Field(description="Whether every delivery is accounted for, as far as can be told.")
    unsure: str | None = Field(description="Why it cannot be told now whether something is missing.")
    since: datetime
    until: datetime
    at: datetime
    accounts: list[Account] = Field(description="Of tracked deliveries, by id.")
    counted: list[Counted] = Field(description="Of all deliveries, by count.")
    counted_since: datetime | None
    retrying: int = Field(description="Messages in the retry tiers, which all consumers share.")
    to_reviewer: dict[str, int] = Field(description="Messages on their way into the database.")
    missing: int = Field(description="Tracked deliveries that are nowhere.")
    candidates: list[Candidate] = Field(description="Those of which that many are missing; the first 10,000.")
    faults: list[str] = Field(description="What else does not add up.")


@router.get("/api/ledger", summary="Account for everything that was accepted")
def balance(who: Acting, served: Served, window: Annotated[Window, Query()]) -> Balance:
    """Tracked messages by id, all others by count. 503 when the broker does not answer."""
    found = served.desk.ledger.window(who, window.since, window.until, consumer=window.consumer, wait=window.wait)
    return Balance.model_validate(found)
