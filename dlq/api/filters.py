"""Which dead letters a request means: the same filters in a URL and in a body."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ackline.dlq.api.cursor import Cursor
from ackline.dlq.api.values import MAX_COUNT, Body, Id, Name, Text, Time
from ackline.dlq.condition import MAX_CONDITION
from ackline.dlq.filters import MAX_CONDITIONS, MAX_IDS, MAX_TEXT
from ackline.dlq.selection import Selection
from ackline.infra.tables import DeadLetterState, Source

#: Items of a page at most.
MAX_PAGE = 500

Attempts = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Condition = Annotated[str, Field(max_length=MAX_CONDITION, examples=['payload.order_id = "A-1"'])]


class Filters(Body):
    """Those dead letters of which all of this is true; what is left out says nothing."""

    ids: Annotated[list[Id], Field(max_length=MAX_IDS)] | None = None
    states: list[DeadLetterState] | None = Field(default=None, max_length=len(DeadLetterState))
    consumer: Name | None = Field(default=None, description="Empty: those that no consumer takes.")
    type: Name | None = None
    fingerprint: Name | None = Field(default=None, description="Those of one group.")
    source: Source | None = None
    error_type: Name | None = None
    message_id: Name | None = None
    correlation_id: Name | None = None
    attempts_min: Attempts | None = None
    attempts_max: Attempts | None = None
    received_since: Time | None = Field(default=None, description="Included.")
    received_until: Time | None = Field(default=None, description="Not included.")
    text: Annotated[Text, Field(max_length=MAX_TEXT)] | None = Field(
        default=None, description="Words of the error message, or the beginnings of words; all of them."
    )
    where: Annotated[list[Condition], Field(max_length=MAX_CONDITIONS)] | None = Field(
        default=None, description="Conditions on the payload: a path, = != < <= > >= and a JSON value, or `exists`."
    )

    def selection(self) -> Selection:
        """What the services take. Raises `Invalid`."""
        return Selection.parse(**self.model_dump(include=set(Filters.model_fields), exclude_none=True))


class QueryFilters(Filters):
    """The same in a URL, of which servers read no more than some ten thousand bytes: many ids are for a body."""

    ids: Annotated[list[Id], Field(max_length=100)] | None = None
    where: Annotated[list[Annotated[Condition, Field(max_length=400)]], Field(max_length=MAX_CONDITIONS)] | None = None


class Paged(Body):
    """Which part of a list."""

    after: Cursor | None = Field(default=None, description="`next` of the page before.")
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


class PagedFilters(QueryFilters, Paged):
    """Which part of which dead letters."""
