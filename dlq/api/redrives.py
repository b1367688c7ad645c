"""Redrives: dead letters that go back to their consumers, at once or by a plan."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, Field

from ackline.dlq.api import cursor
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Filters, Paged
from ackline.dlq.api.letters import DeadLetterId
from ackline.dlq.api.refusals import WAITS
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_ID, Body, Id, Name, Reason, Why
from ackline.dlq.patching import MAX_OPERATIONS
from ackline.dlq.redrive import Requested
from ackline.dlq.redrives import MAX_AT_ONCE, MAX_RATE, Redrive
from ackline.dlq.view import Item
from ackline.infra.errors import ConfigurationError
from ackline.infra.tables import ItemState
from ackline.infra.topology import check_consumer_name

router = APIRouter(tags=["redrives"])

RedriveId = Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of a redrive.")]


def _consumer(name: str) -> str:
    try:
        return check_consumer_name(name)
    except ConfigurationError as error:
        raise ValueError(str(error).removesuffix(".")) from None


Consumer = Annotated[Name, AfterValidator(_consumer)]
Rate = Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]
Patch = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_OPERATIONS)]


class Redrives(BaseModel):
    """Redrives, the latest first."""

    items: list[Redrive]
    next: str | None = Field(description="`after` of the next page.")


class PagedItems(Paged):
    """Which messages of a redrive."""

    state: ItemState | None = None


class Items(BaseModel):
    """Messages of a redrive, in the order of their dead letters."""

    items: list[Item]
    next: str | None = Field(description="`after` of the next page.")


class Statement(BaseModel):
    """The account of a redrive, by id where something is open or does not add up."""

    redrive_id: int
    state: str
    planned: int
    items: dict[str, int] = Field(description="How many messages, by what became of them.")
    open: int = Field(description="Messages that are not sent yet, or not answered.")
    adds_up: bool = Field(description="Whether every message that was planned is accounted for.")
    duplicates: int = Field(description="Arrivals and reports that changed nothing.")
    flagged: int = Field(description="Dead letters to which something happened out of turn.")
    unanswered: list[int] = Field(description="Dead letters that were sent, and of which nothing is known yet.")
    odd: dict[int, str] = Field(description="Dead letters that do not agree with the redrive, and in what.")


class Retry(Body):
    """Which dead letters are sent back at once."""

    ids: list[Id] = Field(min_length=1, max_length=MAX_AT_ONCE)
    reason: Reason


class Planned(Body):
    """What a redrive is to send."""

    selection: Filters
    consumer: Consumer | None = Field(default=None, description="All to this one; else each to its own.")
    rate: Rate | None = Field(default=None, description="Messages a second; null: as fast as it goes.")
    canary: bool = Field(default=True, description="Send 1, 5, 25, … first, and go on only when all were handled.")
    patch: Patch | None = Field(default=None, description="RFC 6902, applied to each before it is sent.")
    include_handled: bool = Field(
        default=False, description="Send also what was handled already, or overtaken by a newer message of its key."
    )
    reason: Reason


class NewRate(Body):
    """How fast a redrive goes on."""

    rate: Rate | None = Field(description="Messages a second; null: as fast as it goes.")


@router.post("/api/dead-letters/{id}/retry", responses=WAITS, summary="Send one back at once")
def retried(who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Why) -> Requested:
    """To the consumer that failed. 409 when somebody else has it."""
    return served.desk.redrives.retry(who, [dead_letter_id], body.reason)


@router.post("/api/retries", responses=WAITS, summary="Send several back at once")
def retried_several(who: Acting, served: Served, body: Retry) -> Requested:
    """Each to the consumer that failed; says which ones somebody else has. Many are for a plan."""
    return served.desk.redrives.retry(who, body.ids, body.reason)


@router.post("/api/redrives", status_code=201, summary="Plan a redrive")
def planned(who: Acting, served: Served, body: Planned) -> Redrive:
    """Freezes what would be sent where, and says why what is left out is. Nothing is sent."""
    return served.desk.redrives.plan(
        who,
        body.selection.selection(),
        consumer=body.consumer,
        rate=body.rate,
        canary=body.canary,
        patch=body.patch,
        include_handled=body.include_handled,
        reason=body.reason,
    )


@router.get("/api/redrives", summary="A page of redrives")
def listed(who: Acting, served: Served, asked: Annotated[Paged, Query()]) -> Redrives:
    """The latest first, with how far each is."""
    page = served.desk.redrives.page(who, after=cursor.read(asked.after, cursor.ID), limit=asked.limit)
    return Redrives(items=page.items, next=cursor.written(page.next))


@router.get("/api/redrives/{id}", summary="One redrive")
def shown(who: Acting, served: Served, redrive_id: RedriveId) -> Redrive:
    """How far it is."""
    return served.desk.redrives.get(who, redrive_id)


@router.get("/api/redrives/{id}/items", summary="Messages of a redrive")
def items(who: Acting, served: Served, redrive_id: RedriveId, asked: Annotated[PagedItems, Query()]) -> Items:
    """What became of each."""
    after = cursor.read(asked.after, cursor.ID)
    page = served.desk.redrives.items(who, redrive_id, asked.state, after=after, limit=asked.limit)
    return Items(items=page.items, next=cursor.written(page.next))


@router.get("/api/redrives/{id}/statement", summary="The account of a redrive")
def statement(who: Acting, served: Served, redrive_id: RedriveId) -> Statement:
    """Whether every message that was planned is accounted for."""
    return Statement.model_validate(served.desk.redrives.statement(who, redrive_id), from_attributes=True)


@router.post("/api/redrives/{id}/start", responses=WAITS, summary="Start a planned redrive")
def started(who: Acting, served: Served, redrive_id: RedriveId) -> Redrive:
    """The reviewer sends from now on."""
    return served.desk.redrives.start(who, redrive_id)


@router.post("/api/redrives/{id}/pause", summary="Pause a redrive")
def paused(who: Acting, served: Served, redrive_id: RedriveId) -> Redrive:
    """What is on its way goes on."""
    return served.desk.redrives.pause(who, redrive_id)


@router.post("/api/redrives/{id}/resume", summary="Go on with a redrive")
def resumed(who: Acting, served: Served, redrive_id: RedriveId) -> Redrive:
    """One that is paused; or that stopped by itself, with a new canary."""
    return served.desk.redrives.resume(who, redrive_id)


@router.post("/api/redrives/{id}/rate", summary="Set how fast a redrive goes")
def paced(who: Acting, served: Served, redrive_id: RedriveId, body: NewRate) -> Redrive:
    """From now on."""
    return served.desk.redrives.rate(who, redrive_id, body.rate)


@router.post("/api/redrives/{id}/cancel", summary="Cancel a redrive")
def cancelled(who: Acting, served: Served, redrive_id: RedriveId) -> Redrive:
    """For good. What is on its way goes on."""
    return served.desk.redrives.cancel(who, redrive_id)
