"""Where a page ends, as clients keep it: opaque, so that nobody counts on what it holds; it is no secret."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from ackline.dlq.api.values import MAX_ID
from ackline.dlq.errors import Fault, Invalid

Cursor = Annotated[str, StringConstraints(max_length=2_000)]


#: After an id.
ID: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0, le=MAX_ID)])

#: After what a service says by itself.
TEXT: TypeAdapter[str] = TypeAdapter(str)


def written(after: Any) -> str | None:
    """The cursor of a page that begins after *after*, which JSON can say. None: there is none."""
    if after is None:
        return None
    return base64.urlsafe_b64encode(json.dumps(after, default=str).encode()).decode().rstrip("=")


def read(cursor: str | None, kind: TypeAdapter[Any]) -> Any:
    """What `written` was given, as a value of *kind*. Raises `Invalid` for what it never wrote."""
    if cursor is None:
        return None
    try:
        return kind.validate_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, ValidationError):
        message = "is no cursor: take `next` of the page before, as it is"
        raise Invalid(f"The parameter after {message}.", [Fault("after", message)]) from None
