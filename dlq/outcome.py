"""What a worker reports of a redriven message, on `ackline.outcomes`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from ackline.dlq.deadletter import clean, name, time

HANDLED = "handled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """That a handler succeeded with a message which a redrive sent."""

    redrive_item_id: str
    consumer: str
    message_id: str
    at: datetime
    worker: str


class NotAnOutcome(ValueError):
    """The body is none that a worker writes."""


def read(body: bytes, now: datetime) -> Outcome | None:
    """The outcome in *body*; None for an event that changes no dead letter.

    Raises `NotAnOutcome` for what no worker writes.
    """
    try:
        event = json.loads(body)
        if event["event"] != HANDLED or not event.get("redrive"):
            return None
        return Outcome(
            redrive_item_id=name(_text(event, "redrive")),
            consumer=name(_text(event, "consumer")),
            message_id=clean(str(event.get("message_id") or "")),
            at=time(str(event.get("at"))) or now,
            worker=name(str(event.get("worker") or "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotAnOutcome(f"{type(error).__name__}: {error}") from None


def _text(event: dict[str, object], key: str) -> str:
    value = event[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is no text")
    return value
