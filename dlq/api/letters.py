"""Dead letters: found, read, noted on, discarded and restored."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from ackline.dlq.api import cursor
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Filters, PagedFilters, QueryFilters
from ackline.dlq.api.refusals import WAITS
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_COUNT, MAX_ID, Body, Id, Reason, Text, Why
from ackline.dlq.filters import MAX_IDS
from ackline.dlq.letters import MAX_NOTE, Done
from ackline.dlq.selection import Selection
from ackline.dlq.view import Detail, Summary

router = APIRouter(tags=["dead letters"])

DeadLetterId = Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of a dead letter.")]


class Letters(BaseModel):
    """Dead letters, the newest first."""

    items: list[Summary]
    next: str | None = Field(description="`after` of the next page. A page may be short, even empty, and have one.")
    scanned: int = Field(description="Payloads that were read one by one, since no index serves the condition.")


class Note(Body):
    """A note."""

    text: Text = Field(min_length=1, max_length=MAX_NOTE)


class Discard(Body):
    """Which dead letters are discarded."""

    selection: Filters
    reason: Reason
    expect: int | None = Field(
        default=None, ge=0, le=MAX_ID, description="How many they are; asked for when they are many."
    )


class Restore(Body):
    """Which dead letters come back into review."""

    ids: list[Id] = Field(min_length=1, max_length=MAX_IDS)
    reason: Reason


@router.get("/api/dead-letters", summary="A page of dead letters")
def listed(who: Acting, served: Served, filters: Annotated[PagedFilters, Query()]) -> Letters:
    """Those of which all filters are true, the newest first."""
    after = cursor.read(filters.after, cursor.ID)
    page = served.desk.letters.page(who, filters.selection(), after=after, limit=filters.limit)
    return Letters(items=page.items, next=cursor.written(page.next), scanned=page.scanned)


@router.get("/api/dead-letters/counts", summary="How many dead letters are in each state")
def counted(who: Acting, served: Served, filters: Annotated[QueryFilters, Query()]) -> dict[str, int]:
    """Of those of which all filters are true."""
    return served.desk.letters.counts(who, filters.selection())


@router.get("/api/dead-letters/{id}", summary="All of one dead letter")
def shown(who: Acting, served: Served, dead_letter_id: DeadLetterId, response: Response) -> Detail:
    """Why it is here, what it is, and what people did. Its ETag is the version of its payload, which an edit names."""
    found = served.desk.letters.get(who, dead_letter_id)
    response.headers["ETag"] = f'"{found.version}"'
    return found


@router.post("/api/dead-letters/{id}/unmask", summary="One dead letter, with what its contract masks")
def unmasked(who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Why) -> Detail:
    """It is put on record who saw it, and why."""
    return served.desk.letters.get(who, dead_letter_id, unmask=body.reason)


_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "A file to keep, whatever it holds."}
}
Version = Annotated[int | None, Query(ge=0, le=MAX_COUNT, description="0 is as it came; else the latest.")]


@router.get(
    "/api/dead-letters/{id}/payload", summary="The payload, byte by byte", response_class=Response, responses=_BYTES
)
def payload(who: Acting, served: Served, dead_letter_id: DeadLetterId, version: Version = None) -> Response:
    """What would be sent, or what an earlier version was. One of which its contract masks something is written anew."""
    return _file(dead_letter_id, served.desk.letters.payload(who, dead_letter_id, version))


@router.post(
    "/api/dead-letters/{id}/payload",
    summary="The payload, byte by byte, with what its contract masks",
    response_class=Response,
    responses=_BYTES,
)
def payload_unmasked(
    who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Why, version: Version = None
) -> Response:
    """It is put on record who had it, and why."""
    return _file(dead_letter_id, served.desk.letters.payload(who, dead_letter_id, version, unmask=body.reason))


def _file(dead_letter_id: int, found: bytes) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="dead-letter-{dead_letter_id}.bin"'}
    return Response(found, media_type="application/octet-stream", headers=headers)


@router.post("/api/dead-letters/{id}/notes", status_code=204, summary="Leave a note")
def note(who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Note) -> None:
    """Others see it with the dead letter."""
    served.desk.letters.note(who, dead_letter_id, body.text)


@router.post("/api/dead-letters/{id}/discard", responses=WAITS, summary="Take one out of review for good")
def discarded(who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Why) -> Done:
    """It is kept, and can be restored."""
    return served.desk.letters.discard(who, Selection(ids=(dead_letter_id,)), body.reason, expect=1)


@router.post("/api/dead-letters/{id}/restore", responses=WAITS, summary="Bring one back into review")
def restored(who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Why) -> Done:
    """One that was discarded."""
    return served.desk.letters.restore(who, [dead_letter_id], body.reason)


@router.post("/api/discards", responses=WAITS, summary="Take many out of review for good")
def discarded_many(who: Acting, served: Served, body: Discard) -> Done:
    """They are kept; `POST /api/actions/{id}/undo` brings back exactly those."""
    return served.desk.letters.discard(who, body.selection.selection(), body.reason, expect=body.expect)


@router.post("/api/restores", responses=WAITS, summary="Bring many back into review")
def restored_many(who: Acting, served: Served, body: Restore) -> Done:
    """Those that were discarded."""
    return served.desk.letters.restore(who, body.ids, body.reason)


@router.post("/api/actions/{id}/undo", responses=WAITS, summary="Undo a discard")
def undone(
    who: Acting,
    served: Served,
    action_id: Annotated[int, Path(alias="id", ge=1, le=MAX_ID, description="Of the action.")],
    body: Why,
) -> Done:
    """Exactly what that action discarded comes back into review, but for what somebody did something with since."""
    return served.desk.letters.undo(who, action_id, body.reason)
