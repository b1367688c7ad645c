"""Versions of a payload: made by editing one dead letter; and what a patch would make of many."""

from __future__ import annotations

import base64
import binascii
import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, Field

from ackline.dlq.api.access import Acting
from ackline.dlq.api.filters import Filters
from ackline.dlq.api.letters import DeadLetterId
from ackline.dlq.api.redrives import Patch
from ackline.dlq.api.refusals import WAITS
from ackline.dlq.api.service import Served
from ackline.dlq.api.values import MAX_COUNT, Body, Faulty, Reason, faulty
from ackline.dlq.difference import Difference
from ackline.dlq.edits import Version
from ackline.dlq.errors import Fault, Invalid
from ackline.producer.gateway.problems import Refusal, documented

router = APIRouter(tags=["edits"])

_ETAG = re.compile(r'"(0|[1-9][0-9]{0,17})"')


def seen_version(
    if_match: Annotated[
        str | None, Header(max_length=100, description="The ETag of the dead letter, as whoever edits it saw it.")
    ] = None,
) -> int:
    """The version that whoever edits has seen. Raises `Refusal` (428), `Invalid`."""
    if if_match is None:
        raise Refusal(
            HTTPStatus.PRECONDITION_REQUIRED,
            "Say which version you saw: If-Match with the ETag of GET /api/dead-letters/{id}.",
        )
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        message = 'must be the ETag of GET /api/dead-letters/{id}, such as "0"'
        raise Invalid(f"The header If-Match {message}.", [Fault("If-Match", message)])
    return int(found[1])


Seen = Annotated[int, Depends(seen_version)]
_RESPONSES = WAITS | documented(428)


class Edit(Body):
    """The next version of a dead letter. What is left out stays."""

    payload: str | None = Field(
        default=None, description="The whole of it. What is masked, left as it is shown, keeps its secret."
    )
    payload_base64: str | None = Field(default=None, description="Instead of `payload`, where that is no text.")
    headers: dict[str, Any] | None = Field(default=None, description="All headers but those of Ackline.")
    reason: Reason

    def octets(self) -> bytes | str | None:
        """The payload. Raises `Invalid`."""
        if self.payload_base64 is None:
            return self.payload
        if self.payload is not None:
            raise Invalid("Give payload or payload_base64, not both.", [Fault("payload_base64", "is one too many")])
        try:
            return base64.b64decode(self.payload_base64, validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("payload_base64 is no base64.", [Fault("payload_base64", "is no base64")]) from None


class Revert(Body):
    """Which version becomes the next one."""

    to_version: int = Field(ge=0, le=MAX_COUNT, description="0 is the message as it came.")
    reason: Reason


class PatchPreview(Body):
    """What is to be tried on which dead letters."""

    selection: Filters
    patch: Patch
    sample: int = Field(default=10, ge=1, le=100, description="How many of them, the latest.")


class Preview(BaseModel):
    """What the patch would make of one dead letter. faults: why it cannot be patched."""

    id: int
    type: str
    consumer: str
    diff: list[Difference]
    faults: list[Faulty]


@router.get("/api/dead-letters/{id}/versions", summary="The edits of a dead letter")
def versions(who: Acting, served: Served, dead_letter_id: DeadLetterId) -> list[Version]:
    """Who changed what, when and why; the first one first."""
    return served.desk.edits.versions(who, dead_letter_id)


@router.post("/api/dead-letters/{id}/edits", status_code=201, responses=_RESPONSES, summary="Edit a dead letter")
def edited(
    who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Edit, seen: Seen, response: Response
) -> Version:
    """Makes its next version, which its contract must take. 409 when somebody has edited it since."""
    made = served.desk.edits.edit(
        who, dead_letter_id, body.octets(), headers=body.headers, reason=body.reason, expected_version=seen
    )
    response.headers["ETag"] = f'"{made.version}"'
    return made


@router.post("/api/dead-letters/{id}/revert", status_code=201, responses=_RESPONSES, summary="Bring back a version")
def reverted(
    who: Acting, served: Served, dead_letter_id: DeadLetterId, body: Revert, seen: Seen, response: Response
) -> Version:
    """As the next version."""
    made = served.desk.edits.revert(who, dead_letter_id, body.to_version, reason=body.reason, expected_version=seen)
    response.headers["ETag"] = f'"{made.version}"'
    return made


@router.post("/api/patches/preview", summary="Try a patch on a sample")
def previewed(who: Acting, served: Served, body: PatchPreview) -> list[Preview]:
    """Nothing is changed: that does a redrive with the patch."""
    found = served.desk.edits.preview_patch(who, body.selection.selection(), body.patch, body.sample)
    return [
        Preview(
            id=one.id,
            type=one.type,
            consumer=one.consumer,
            diff=one.diff,
            faults=faulty(one.faults),
        )
        for one in found
    ]
