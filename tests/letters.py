"""Dead letters for tests, as values and as a worker publishes them, and the success that answers their redrive."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ackline.dlq import deadletter
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.outcome import Outcome
from ackline.infra import wire
from ackline.infra.names import DEAD
from ackline.infra.properties import Properties
from ackline.infra.tables import DeliveryState

BODY = b'{"order_id": "A-1"}'


def entry(
    attempt: int = 1, error: str = "ValueError", message: str = "no such user", minute: int = 0
) -> dict[str, Any]:
    """One entry of a history, as a worker writes it."""
    at = f"2026-01-02T03:{minute:02}:{attempt:02}.000Z"
    return {"attempt": attempt, "at": at, "worker": "host:1", "error": error, "message": message}


def worker_headers(
    consumer: str = "billing", redrive: str | None = None, minute: int = 0, **more: Any
) -> dict[str, Any]:
    """The headers of a dead letter from a worker, whose two attempts failed at that *minute*."""
    headers: dict[str, Any] = {
        wire.CONSUMER: consumer,
        wire.ATTEMPT: 2,
        wire.FIRST_FAILED_AT: "2026-01-02T03:00:01.000Z",
        wire.HISTORY: json.dumps([entry(1, minute=minute), entry(2, minute=minute)]),
        wire.REASON: "failed 2 of 2 attempts: ValueError: no such user",
        wire.TRACEBACK: "Traceback (most recent call last):\n  ...\nValueError: no such user",
        wire.ORIGINAL: {"exchange": "ackline.messages", "routing_key": "order.placed"},
    }
    return headers | ({wire.REDRIVE: redrive} if redrive else {}) | more


def worker_properties(message_id: str | None = "m-1", **headers: Any) -> Properties:
    """The properties of a dead letter from a worker; see `worker_headers`."""
    return Properties(
        message_id=message_id,
        type="order.placed",
        content_type="application/json",
        delivery_mode=2,
        headers=worker_headers(**headers),
    )


def read(properties: Properties, body: bytes = BODY, exchange: str | bytes = DEAD, queue: str = DEAD) -> DeadLetter:
    """The dead letter in a delivery from *queue*."""
    return deadletter.read(properties, body, exchange, "order.placed", queue, wire.now())


def letter(message_id: str | None = "m-1", body: bytes = BODY, **headers: Any) -> DeadLetter:
    """A dead letter from a worker."""
    return read(worker_properties(message_id, **headers), body)


def handled(item_id: str, consumer: str = "billing") -> Outcome:
    """What a worker reports when a handler succeeded with what a redrive sent."""
    return Outcome(
        state=DeliveryState.HANDLED,
        message_id="m-1",
        consumer=consumer,
        type="order.placed",
        redrive_item_id=item_id,
        attempt=1,
        at=datetime(2026, 1, 2, 5, tzinfo=UTC),
        due_at=None,
        error=None,
        worker="host:2",
    )
