"""What a worker reports of a tracked or redriven message, on `ackline.outcomes`; see `ackline.consumers.handling`.

`read` is total: what no worker writes is `NotAnOutcome`, and what it returns fits any database.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from ackline.dlq.deadletter import clean, name, time
from ackline.infra.tables import DeliveryState
from ackline.infra.wire import MAX_ATTEMPT, MAX_REASON, cut

#: Event -> the state of the delivery after it.
STATES = {
    "started": DeliveryState.BEING_HANDLED,
    "retried": DeliveryState.WAITING_FOR_RETRY,
    "handled": DeliveryState.HANDLED,
    "dead": DeliveryState.IN_REVIEW,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt at a delivery."""

    state: DeliveryState
    message_id: str
    consumer: str
    type: str
    #: The redrive that sent it; empty before the first. UUIDv7, so a later one is greater.
    redrive_item_id: str
    attempt: int
    #: When, by the worker's clock, but never after *now*.
    at: datetime
    due_at: datetime | None
    error: str | None
    worker: str

    @property
    def answers_redrive(self) -> bool:
        """Whether a dead letter becomes handled by it."""
        return self.state is DeliveryState.HANDLED and self.redrive_item_id != ""


class NotAnOutcome(ValueError):
    """The body is none that a worker writes."""


def read(body: bytes, now: datetime) -> Outcome:
    """The outcome in *body*, which was delivered at *now*. Raises `NotAnOutcome` for what no worker writes."""
    try:
        event = json.loads(body)
        return Outcome(
            state=STATES[_text(event, "event")],
            message_id=name(_text(event, "message_id")),
            consumer=name(_text(event, "consumer")),
            type=name(_optional(event, "type") or ""),
            redrive_item_id=name(_optional(event, "redrive") or ""),
            attempt=_attempt(event),
            at=min(now, time(_text(event, "at")) or now),
            due_at=time(_optional(event, "due")),
            error=_error(event),
            worker=name(_optional(event, "worker") or ""),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotAnOutcome(f"{type(error).__name__}: {error}") from None


def _text(event: dict[str, object], key: str) -> str:
    value = event[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _optional(event: dict[str, object], key: str) -> str | None:
    return None if event.get(key) is None else _text(event, key)


def _attempt(event: dict[str, object]) -> int:
    value = event["attempt"]
    if type(value) is not int or not 1 <= value <= MAX_ATTEMPT:
        raise ValueError("attempt is no number of one")
    return value


def _error(event: dict[str, object]) -> str | None:
    said = _optional(event, "error")
    return cut(clean(said), MAX_REASON) if said else None
