"""Groups of equal failures."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from ackline.dlq.api import cursor
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Paged
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import Body, Line, Name, Text
from ackline.dlq.groups import Group, GroupFilter, Order
from ackline.infra.tables import DeadLetterState, GroupStatus

router = APIRouter(tags=["groups"])

Fingerprint = Annotated[Name, Path(alias="fingerprint", description="Of a group.")]


class PagedGroups(Paged):
    """Which groups."""

    status: GroupStatus | None = None
    consumer: Name | None = Field(default=None, description="Empty: of what no consumer takes.")
    owner: Name | None = Field(default=None, description="Empty: without one.")
    state: DeadLetterState | None = Field(default=None, description="With dead letters in it.")
    text: Line | None = Field(default=None, description="Words of the error's type, place or message; all of them.")
    order: Order = Order.LAST_SEEN


class Groups(BaseModel):
    """Groups, in the order that was asked for."""

    items: list[Group]
    next: str | None = Field(description="`after` of the next page, in the same order.")


class Triage(Body):
    """What is said of a group. What is left out stays; an empty text takes away what was there."""

    status: GroupStatus | None = None
    owner: Name | None = None
    note: Text | None = None
    runbook: Line | None = Field(default=None, description="An http(s) URL.")
    resolved_in: Name | None = Field(default=None, description="Version of the application; of a resolved group.")


@router.get("/api/groups", summary="A page of groups")
def listed(who: Acting, served: Served, asked: Annotated[PagedGroups, Query()]) -> Groups:
    """What an operator works with: what failed alike, how often, and what people say of it."""
    wanted = GroupFilter(asked.status, asked.consumer, asked.owner, asked.state, asked.text)
    after = cursor.read(asked.after, cursor.TEXT)
    page = served.desk.groups.page(who, wanted, after=after, limit=asked.limit, order=asked.order)
    return Groups(items=page.items, next=cursor.written(page.next))


@router.get("/api/groups/{fingerprint}", summary="One group")
def shown(who: Acting, served: Served, fingerprint: Fingerprint) -> Group:
    """With counts by state, the rate of the last 24 hours, and a sample."""
    return served.desk.groups.get(who, fingerprint)


@router.patch("/api/groups/{fingerprint}", summary="Say something of a group")
def triaged(who: Acting, served: Served, fingerprint: Fingerprint, body: Triage) -> Group:
    """A resolved group is open again by itself with its next failure."""
    said = body.model_dump(exclude_none=True)
    return served.desk.groups.triage(who, fingerprint, **said)
