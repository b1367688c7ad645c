"""Dead letters out of this database, and into another: JSON lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from ackline.dlq.api import lines
from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Filters
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import Body, Reason
from ackline.dlq.rights import Right
from ackline.dlq.transfer import Imported

router = APIRouter(tags=["export and import"])

#: Where dead letters come in, and bytes of them at most.
IMPORT, MAX_IMPORT_BYTES = "/api/import", 1024**3
#: Bytes that are kept in memory, and not on disk, while they arrive.
_IN_MEMORY = 4 * 1024 * 1024


class Unmasked(Body):
    """Which dead letters are exported whole, and why."""

    selection: Filters
    reason: Reason


@router.get("/api/export", response_class=StreamingResponse, responses=lines.DOCUMENTED, summary="Export dead letters")
def exported(who: Acting, served: Served, filters: Annotated[Filters, Query()]) -> StreamingResponse:
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
    openapi_extra={"requestBody": {"required": True, "content": {lines.NDJSON: {"schema": {"type": "string"}}}}},
    summary="Import dead letters",
)
async def imported(who: Acting, served: Served, request: Request) -> Imported:
    """What was exported, here or elsewhere. All come in as in review; those that are here already are skipped."""
    who.must(Right.IMPORT)
    lines.check_kind(request)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        async for chunk in request.stream():
            await run_sync(file.write, chunk)
        file.seek(0)
        return await run_sync(served.desk.letters.import_, who, file)
