"""Dead letters out of this database, and into another: JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from ackline.dlq.api import lines
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Filters, QueryFilters
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import Body, Faulty, Reason, faulty
from ackline.dlq.rights import Right
from ackline.producer.gateway.problems import Refusal, documented

router = APIRouter(tags=["export and import"])

#: Where dead letters come in, and bytes of them at most.
IMPORT, MAX_IMPORT_BYTES = "/api/import", 1024**3
#: Bytes that are kept in memory, and not on disk, while they arrive.
_IN_MEMORY = 4 * 1024 * 1024


class Imported(BaseModel):
    """What became of lines."""

    stored: int = Field(description="That are in review now.")
    duplicates: int = Field(description="That were here already.")
    faulty: int = Field(description="That cannot be used.")
    faults: list[Faulty] = Field(description="Why not, by the number of the line; the first of them.")


class Unmasked(Body):
    """Which dead letters are exported whole, and why."""

    selection: Filters
    reason: Reason


@router.get("/api/export", response_class=StreamingResponse, responses=lines.DOCUMENTED, summary="Export dead letters")
def exported(who: Acting, served: Served, filters: Annotated[QueryFilters, Query()]) -> StreamingResponse:
    """Those of which all filters are true, with their payloads, histories and edits: one JSON object a line."""
    return _file(served.desk.letters.export(who, filters.selection()))


@router.post(
    "/api/export",
    response_class=StreamingResponse,
    responses=lines.DOCUMENTED,
    summary="Export dead letters with what their contracts mask",
)
def exported_unmasked(who: Acting, served: Served, body: Unmasked) -> StreamingResponse:
    """It is put on record who had it, and why. Only such lines can be imported where something is masked."""
    return _file(served.desk.letters.export(who, body.selection.selection(), unmask=body.reason))


def _file(found: Iterator[dict[str, Any]]) -> StreamingResponse:
    return lines.streamed((json.dumps(letter) for letter in found), "dead-letters.jsonl")


@router.post(
    IMPORT,
    openapi_extra={"requestBody": {"required": True, "content": {lines.NDJSON: {"schema": {"type": "object"}}}}},
    responses=documented(415),
    summary="Import dead letters",
)
async def imported(who: Acting, served: Served, request: Request) -> Imported:
    """What was exported, here or elsewhere. All come in as in review; those that are here already are skipped."""
    who.must(Right.IMPORT)
    lines.check_kind(request)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        try:
            async for chunk in request.stream():
                await run_sync(file.write, chunk)
        except ClientDisconnect:  # nobody reads this; but it is no failure of the desk either
            raise Refusal(HTTPStatus.BAD_REQUEST, "The body was not sent to its end.") from None
        file.seek(0)
        took = await run_sync(served.desk.letters.import_, who, file)
    faults = faulty(took.faults)
    return Imported(stored=took.stored, duplicates=took.duplicates, faulty=took.faulty, faults=faults)
