"""Requests that wait for a second person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from ackline.dlq.api import cursor
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Paged
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_ID, Why
from ackline.dlq.approvals import Approval
from ackline.infra.tables import ApprovalState

router = APIRouter(tags=["approvals"])

ApprovalId = Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of the request.")]


class PagedApprovals(Paged):
    """Which requests."""

    states: list[ApprovalState] = Field(default=[], max_length=len(ApprovalState))


class Approvals(BaseModel):
    """Requests, the latest first."""

    items: list[Approval]
    next: str | None = Field(description="`after` of the next page.")


@router.get("/api/approvals", summary="A page of requests")
def listed(who: Acting, served: Served, asked: Annotated[PagedApprovals, Query()]) -> Approvals:
    """What was asked for, by whom, why it waits, and what became of it."""
    page = served.desk.approvals.page(who, asked.states, after=cursor.read(asked.after, cursor.ID), limit=asked.limit)
    return Approvals(items=page.items, next=cursor.written(page.next))


@router.get("/api/approvals/{id}", summary="One request")
def shown(who: Acting, served: Served, approval_id: ApprovalId) -> Approval:
    """What was asked for, and what became of it."""
    return served.desk.approvals.get(who, approval_id)


@router.post("/api/approvals/{id}/approve", summary="Approve a request, and carry it out")
def approved(who: Acting, served: Served, approval_id: ApprovalId, body: Why) -> Approval:
    """By somebody who did not ask for it, nor edited what it would send. Answers when it is done, or has failed."""
    return served.desk.approvals.approve(who, approval_id, body.reason)


@router.post("/api/approvals/{id}/refuse", summary="Refuse a request")
def refused(who: Acting, served: Served, approval_id: ApprovalId, body: Why) -> Approval:
    """Nothing of it is done."""
    return served.desk.approvals.refuse(who, approval_id, body.reason)


@router.post("/api/approvals/{id}/withdraw", summary="Withdraw one's own request")
def withdrawn(who: Acting, served: Served, approval_id: ApprovalId, body: Why) -> Approval:
    """Nothing of it is done."""
    return served.desk.approvals.withdraw(who, approval_id, body.reason)
