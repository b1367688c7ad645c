"""JSON lines: answers that begin at once and may be of any length, and bodies."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from ackline.producer.gateway.parameters import content_type
from ackline.producer.gateway.problems import Refusal

NDJSON = "application/x-ndjson"
#: For OpenAPI.
DOCUMENTED: dict[int | str, dict[str, Any]] = {200: {"content": {NDJSON: {}}, "description": "One JSON object a line."}}


def streamed(lines: Iterator[str], name: str) -> StreamingResponse:
    """*lines* as a file *name*. What is raised before the first one is an answer of its own.

    What is raised later breaks the answer off, so that nobody takes the part for the whole.
    """
    first = next(lines, None)
    begun = chain([] if first is None else [first], lines)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse((f"{line}\n" for line in begun), media_type=NDJSON, headers=headers)


def check_kind(request: Request) -> None:
    """Raise `Refusal` (415) unless the body of *request* is said to be JSON lines."""
    kind = content_type(request)
    if kind not in (NDJSON, "application/jsonl"):
        named = kind or "without a content type"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must be {NDJSON}, not {named}.")
