"""What requests hold: ids, texts and times that fit into any database, and cursors."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
)

from ackline.dlq.errors import Fault

#: The greatest number that both databases have for an id.
MAX_ID = 2**63 - 1
#: The same of what counts something of one dead letter.
MAX_COUNT = 2**31 - 1
#: Characters of what people write.
MAX_NAME, _LINE, _TEXT = 255, 2_000, 20_000


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds the character NUL, which no database keeps")
    return text


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies too far away") from None


Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Name = Annotated[str, StringConstraints(max_length=MAX_NAME), AfterValidator(_storable)]
Line = Annotated[str, StringConstraints(max_length=_LINE), AfterValidator(_storable)]
Text = Annotated[str, StringConstraints(max_length=_TEXT), AfterValidator(_storable)]
Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]
#: Bytes, in an answer.
Hex = Annotated[bytes, PlainSerializer(bytes.hex, return_type=str)]
Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=_LINE),
    AfterValidator(_storable),
    Field(description="Why. It is kept with the action."),
]


class Body(BaseModel):
    """What a request holds. A field that it does not know is a mistake, and refused."""

    model_config = ConfigDict(extra="forbid")


class Why(Body):
    """The reason of an action that needs nothing else."""

    reason: Reason


class Faulty(BaseModel):
    """What is wrong, and where."""

    field: str
    message: str


def faulty(faults: Iterable[Fault]) -> list[Faulty]:
    """*faults* as an answer has them."""
    return [Faulty(field=fault.path, message=fault.message) for fault in faults]
