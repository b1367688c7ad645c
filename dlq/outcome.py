"""What a worker reports of a tracked or redriven message, on `ackline.outcomes`; see `ackline.consumers.handling`.

A worker reports many in one message: a JSON array of events. `read` is total: what no worker writes is `NotAnOutcome`,
and what it returns fits any database.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ackline.dlq.deadletter import clean, name, time
from ackline.infra.tables import DeliveryState
from ackline.infra.wire import MAX_ATTEMPT, MAX_REASON, cut

#: Event -> the state of the delivery after it.
STATES = {
    "started": DeliveryState.BEING_HANDLED,
    "progress": DeliveryState.BEING_HANDLED,
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
    #: Of a message that has one (`ackline-key`).
    ordering_key: str | None = None
    #: How far the handler is, from 0 to 1, and what it says of that.
    progress: float | None = None
    progress_text: str | None = None

    @property
    def answers_redrive(self) -> bool:
        """Whether a dead letter becomes handled by it."""
        return self.state is DeliveryState.HANDLED and self.redrive_item_id != ""


class NotAnOutcome(ValueError):
    """The body is none that a worker writes."""


def read(body: bytes, now: datetime) -> list[Outcome | NotAnOutcome]:
    """The outcomes in *body*, which was delivered at *now*; why not, in place of one that no worker writes."""
    try:
        events = json.loads(body)
    except (ValueError, RecursionError) as error:
        return [NotAnOutcome(f"{type(error).__name__}: {error}")]
    if not isinstance(events, list) or not events:
        return [NotAnOutcome("it is no array of events")]
    return [_outcome(event, now) for event in events]


def _outcome(event: Any, now: datetime) -> Outcome | NotAnOutcome:
    try:
        return Outcome(
            state=STATES[_text(event, "event")],
            message_id=name(_text(event, "message_id")),
            consumer=name(_text(event, "consumer")),
            type=name(_optional(event, "type") or ""),
            redrive_item_id=name(_optional(event, "redrive") or ""),
            attempt=_attempt(event),
            at=min(now, time(_text(event, "at")) or now),
            due_at=time(_optional(event, "due")),
            error=_said(event, "error"),
            worker=name(_optional(event, "worker") or ""),
            ordering_key=_key(event),
            progress=_progress(event),
            progress_text=_said(event, "progress_text"),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return NotAnOutcome(f"{type(error).__name__}: {error}")


def _text(event: dict[str, object], key: str) -> str:
    value = event[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value


def _optional(event: dict[str, object], key: str) -> str | None:
    return None if event.get(key) is None else _text(event, key)


def _key(event: dict[str, object]) -> str | None:
    key = _optional(event, "key")
    return None if key is None else name(key)


def _attempt(event: dict[str, object]) -> int:
    value = event["attempt"]
    if type(value) is not int or not 1 <= value <= MAX_ATTEMPT:
        raise ValueError("attempt is no number of one")
    return value


def _progress(event: dict[str, object]) -> float | None:
    value = event.get("progress")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("progress is no number from 0 to 1")
    return float(value)


def _said(event: dict[str, object], key: str) -> str | None:
    said = _optional(event, key)
    return cut(clean(said), MAX_REASON) if said else None
