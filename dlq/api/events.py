"""`GET /api/events`: redrives and groups as they change, without asking again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from ackline.dlq.api.access import Acting, signed_in
from ackline.dlq.api.service import Served, Service
from ackline.dlq.api.watching import Event, Known
from ackline.dlq.desk import Desk
from ackline.dlq.groups import Group
from ackline.dlq.redrives import Redrive
from ackline.dlq.rights import Actor, Right, Role
from ackline.infra.database import DatabaseUnavailable
from ackline.infra.errors import AcklineError
from ackline.producer.gateway.problems import Refusal, unavailable

router = APIRouter(tags=["events"])

#: Milliseconds after which a browser whose stream broke comes again.
RETRY_MILLISECONDS = 2000
#: Redrives and groups that are watched: the latest ones.
MOST = 100
_REDRIVE, _GROUP = TypeAdapter(Redrive), TypeAdapter(Group)
#: Who looks.
_ITSELF = Actor("ackline desk", Role.VIEWER)


def look(desk: Desk) -> Known:
    """What is watched, as it is now. Raises `DatabaseUnavailable`."""
    known = {}
    for redrive in desk.redrives.page(_ITSELF, limit=MOST).items:
        known[f"redrive {redrive.id}"] = Event("redrive", _REDRIVE.dump_json(redrive).decode())
    for group in desk.groups.page(_ITSELF, limit=MOST).items:
        known[f"group {group.fingerprint}"] = Event("group", _GROUP.dump_json(group).decode())
    return known


@router.get(
    "/api/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Events `redrive` and `group`, with what a list of them shows of each.",
        }
    },
    summary="Redrives and groups as they change",
)
async def events(who: Acting, request: Request, served: Served) -> StreamingResponse:
    """Server-sent events: the latest of both at once, and each again when something about it has changed.

    Ends when the session does.
    """
    who.must(Right.VIEW)
    if served.watching.is_full:
        raise unavailable("This desk has as many open streams as it can hold.")
    # The second: nginx would collect them.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, served), media_type="text/event-stream", headers=headers)


async def _events(request: Request, served: Service) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    async with aclosing(served.watching.changes()) as changes:
        async for news in changes:
            if not await asyncio.to_thread(_may_still, request, served):
                return
            yield "".join(f"event: {event.name}\ndata: {event.data}\n\n" for event in news) or ": nothing new\n\n"


def _may_still(request: Request, served: Service) -> bool:
    try:
        return signed_in(request, served).actor.may(Right.VIEW)
    except DatabaseUnavailable:  # nothing new can come then either
        return True
    except (AcklineError, Refusal):
        return False
