"""What was done, by whom, when and why; and whether that record is as it was written."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from ackline.dlq.api import cursor, lines
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Paged
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_ID, Hex, Id, Line, Name, Time
from ackline.dlq.chain import Broken, Head

router = APIRouter(tags=["audit"])


class PagedActions(Paged):
    """Which actions."""

    actor: Name | None = None
    action: Name | None = None
    dead_letter: Id | None = Field(default=None, description="Those that were about it.")
    since: Time | None = Field(default=None, description="Included.")
    until: Time | None = Field(default=None, description="Not included.")


class Action(BaseModel):
    """What somebody did."""

    id: int
    at: datetime
    actor: str
    action: str
    reason: str
    details: dict[str, Any]
    count: int = Field(description="Dead letters that it was about.")
    dead_letter: int | None = Field(description="The one that it was about, or the first of them.")
    hash: Hex


class Actions(BaseModel):
    """Actions, the latest first."""

    items: list[Action]
    next: str | None = Field(description="`after` of the next page.")


class ActionItem(BaseModel):
    """A dead letter that an action was about."""

    dead_letter: int
    before: str
    after: str


class ActionItems(BaseModel):
    """The dead letters of an action, in the order of their ids."""

    items: list[ActionItem]
    next: str | None = Field(description="`after` of the next page.")


class Verdict(BaseModel):
    """Whether all actions are as they were written."""

    count: int = Field(description="Actions that are.")
    head: str = Field(description="The end of the chain; whoever notes it can prove later that nothing was removed.")
    broken: Broken | None = Field(description="The first one that is not.")


@router.get("/api/audit", summary="A page of what was done")
def listed(who: Acting, served: Served, asked: Annotated[PagedActions, Query()]) -> Actions:
    """The latest first."""
    page = served.desk.audit.page(
        who,
        actor=asked.actor,
        action=asked.action,
        dead_letter=asked.dead_letter,
        since=asked.since,
        until=asked.until,
        after=cursor.read(asked.after, cursor.ID),
        limit=asked.limit,
    )
    items = [Action.model_validate(action, from_attributes=True) for action in page.items]
    return Actions(items=items, next=cursor.written(page.next))


@router.get(
    "/api/audit/export", response_class=StreamingResponse, responses=lines.DOCUMENTED, summary="All that was done"
)
def exported(
    who: Acting,
    served: Served,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Only what was done after that action.")] = 0,
) -> StreamingResponse:
    """JSON lines, which `ackline audit verify FILE` verifies without the database."""
    return lines.streamed(served.desk.audit.export(who, after), "ackline-audit.jsonl")


@router.get("/api/audit/verify", summary="Verify the record")
def verified(
    who: Acting,
    served: Served,
    expect: Annotated[Line | None, Query(description="A `head` that was noted once: NUMBER:HASH.")] = None,
) -> Verdict:
    """Reads all of it."""
    verdict = served.desk.audit.verify(who, None if expect is None else Head.parse(expect))
    return Verdict(count=verdict.count, head=str(verdict.head), broken=verdict.broken)


@router.get("/api/actions/{id}/items", summary="The dead letters of an action")
def items(
    who: Acting,
    served: Served,
    action_id: Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of the action.")],
    asked: Annotated[Paged, Query()],
) -> ActionItems:
    """With their states before and after it."""
    found = served.desk.audit.items(who, action_id, cursor.read(asked.after, cursor.ID) or 0, asked.limit)
    shown = [ActionItem(dead_letter=row_id, before=before, after=after) for row_id, before, after in found]
    return ActionItems(items=shown, next=cursor.written(found[-1][0]) if len(found) == asked.limit else None)
