"""What a dead letter is: read from a delivery, whoever says that it failed. Pure, and total: it never raises.

There are three who say so, told apart by where the message was and by what only the broker writes:

| source | queue | told by | the headers `ackline-*` |
| --- | --- | --- | --- |
| worker | `ackline.dead` | no `x-death`: the worker takes it off | are Ackline's |
| broker | `ackline.dead` | `x-death`, whose first entry the broker wrote, whatever the client put there | are Ackline's if the message had come to that queue through `ackline.return` |
| unrouted | `ackline.unrouted`, or dead-lettered from it | the exchange of the delivery | the same |

Seen on RabbitMQ 4.3.6: when the broker dead-letters, it throws away a forged `x-death` of any shape and every forged
`x-first-death-*`; where it does not (in `ackline.unrouted`), a forged `x-death` arrives as the client wrote it, and is
not read here. 3.10.8 puts its entry first and keeps a forged list behind it, and forged `x-first-death-*` as they are; if
a forged entry names the same queue and reason, it is that entry which comes first, with its forged `exchange`. So what is
trusted on account of it must be harmless when it lies: see `ackline.dlq.intake` for the redrive id. (A forged list of
anything but tables kills the dead-lettering of a whole 3.10.8 node until it restarts: no help for that from here.)
"""  # noqa: E501

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ackline.dlq.readable import task_name
from ackline.infra import wire
from ackline.infra.names import DEAD, RETURN, UNROUTED
from ackline.infra.properties import Properties
from ackline.infra.table import text
from ackline.infra.tables import Source

#: Bytes of a name (consumer, type, key) at most: AMQP's own bound, for names that come in headers, which have none.
MAX_NAME = 255

Entry = dict[str, Any]
"""One entry of a history: `attempt` (None when it was no handler that failed), `at`, `worker`, `error`, `message`."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One delivery that failed for good: a message for one consumer, and why.

    All texts are fit for any database and terminal. `properties` and `payload` are the bytes as they came.
    """

    message_id: str
    consumer: str
    body_sha256: bytes
    source: Source
    reason: str
    error_type: str
    error_message: str
    traceback: str
    attempts: int
    history: list[Entry]
    first_failed_at: datetime
    received_at: datetime
    type: str
    app_id: str | None
    correlation_id: str | None
    published_at: datetime | None
    exchange: str
    routing_key: str
    properties: bytes
    trusted: bool
    payload: bytes
    #: Of a message that has one: `ackline-key`.
    ordering_key: str | None
    #: The redrive item that sent it, if it says so and may be believed so far.
    sent_by: str | None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Who said that the delivery failed, and what is known from that alone."""

    source: Source
    consumer: str
    reason: str
    trusted: bool
    exchange: str
    routing_key: str
    error: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Death:
    """The first entry of `x-death`."""

    queue: str
    reason: str
    exchange: str
    routing_key: str
    expiration: str
    at: datetime | None


def read(
    properties: Properties, body: bytes, exchange: str | bytes, routing_key: str | bytes, queue: str, now: datetime
) -> DeadLetter:
    """The dead letter that was delivered from *queue* at *now*. Never raises.

    exchange, routing_key: as the broker says them of the delivery; bytes where they are no UTF-8.
    A message without an id gets one here; delivered a second time it becomes a second dead letter, never none.
    """
    verdict = _judge(properties, body, clean(exchange), clean(routing_key), queue)
    trail = wire.trail(properties, verdict.exchange, verdict.routing_key, trusted=verdict.trusted)
    by_worker = verdict.source is Source.WORKER
    history = [_entry(attempt) for attempt in trail.history]
    if not by_worker:
        at = (verdict.at or now).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        history.append({"attempt": None, "at": at, "worker": "", "error": verdict.error, "message": verdict.reason})
    last = trail.history[-1] if by_worker and trail.history else None
    traceback = properties.headers.text(wire.TRACEBACK) if by_worker else None
    original_key = name(trail.routing_key) or verdict.routing_key
    ordering_key = properties.headers.text(wire.KEY)
    return DeadLetter(
        message_id=wire.message_id(properties) or wire.uuid7(),
        consumer=name(trail.consumer or "") if by_worker else verdict.consumer,
        body_sha256=hashlib.sha256(body).digest(),
        source=verdict.source,
        reason=_reason_of_worker(properties, trail) if by_worker else wire.cut(verdict.reason, wire.MAX_REASON),
        error_type=clean(last.error) if last else "",
        error_message=clean(last.message) if last else "",
        traceback=clean(traceback or ""),
        attempts=_attempts(trail, last_is_counted=by_worker and wire.ATTEMPT in properties.headers),
        history=history,
        first_failed_at=time(trail.first_failed_at) or _first(trail) or verdict.at or now,
        received_at=now,
        type=message_type(properties, body, original_key),
        app_id=_optional(properties.app_id),
        correlation_id=_optional(properties.correlation_id),
        published_at=_from_seconds(properties.timestamp),
        exchange=name(trail.exchange) or verdict.exchange,
        routing_key=original_key,
        properties=properties.wire,
        trusted=verdict.trusted,
        payload=body,
        ordering_key=None if ordering_key is None else name(ordering_key),
        sent_by=name(trail.redrive) if trail.redrive else None,
    )


def clean(value: str | bytes) -> str:
    """*value* as text that any database takes: NUL and what is no UTF-8 show as escapes."""
    if isinstance(value, bytes):
        return text(value)
    if value.isascii() and "\x00" not in value:  # nearly always, and thirty times per dead letter
        return value
    return text(value.encode("utf-8", "backslashreplace"))


def message_type(properties: Properties, body: bytes, routing_key: str) -> str:
    """What kind of message it is: as it says, else the Celery task that it is, else what it was published with."""
    if properties.type:
        return wire.message_type(properties, routing_key)
    return name(task_name(properties, body) or routing_key)


def name(value: str) -> str:
    """*value* as a clean text that is no longer than a name in AMQP."""
    return wire.cut(clean(value), MAX_NAME)


def _judge(properties: Properties, body: bytes, exchange: str, routing_key: str, queue: str) -> _Verdict:
    if queue == UNROUTED:
        return _unrouted(properties, body, exchange, routing_key)
    if "x-death" not in properties.headers:
        if exchange == DEAD:
            return _Verdict(Source.WORKER, "", "", True, exchange, routing_key)
        reason = f"A program other than Ackline put it into {DEAD}."
        return _Verdict(Source.BROKER, "", reason, False, exchange, routing_key, "foreign")
    death = _death(properties.headers.get("x-death"))
    if death is None:
        reason = "It was dead-lettered, but not by Ackline, and its x-death header says nothing that can be read."
        return _Verdict(Source.BROKER, "", reason, False, exchange, routing_key, "dead-lettered")
    if death.queue == UNROUTED:
        return _unrouted(properties, body, death.exchange, death.routing_key or routing_key, death)
    error, reason = _reason_of_broker(properties, death)
    trusted = death.exchange == RETURN
    return _Verdict(
        Source.BROKER, death.queue, reason, trusted, death.exchange, death.routing_key or routing_key, error, death.at
    )


def _unrouted(
    properties: Properties, body: bytes, exchange: str, routing_key: str, death: _Death | None = None
) -> _Verdict:
    """In `ackline.unrouted`: a type that nobody takes, or what returned to a consumer that is gone."""
    then = f" It was then dead-lettered from {UNROUTED} ({death.reason})." if death else ""
    at = death.at if death else None
    if exchange == RETURN:  # its routing keys are the names of consumers
        reason = f"The consumer {routing_key!r} is gone: its queue does not exist.{then}"
        return _Verdict(Source.UNROUTED, name(routing_key), reason, True, exchange, routing_key, "consumer gone", at)
    type_ = message_type(properties, body, routing_key)
    reason = f"No consumer takes messages of type {type_!r}.{then}"
    return _Verdict(Source.UNROUTED, "", reason, False, exchange, routing_key, "no consumer", at)


def _reason_of_broker(properties: Properties, death: _Death) -> tuple[str, str]:
    """A name and a sentence for what the broker says."""
    where = f"the queue {death.queue!r}"
    if death.reason == "delivery_limit":
        count = properties.headers.number("x-delivery-count") or 0
        times = f"{count} times" if 1 < count < wire.MAX_ATTEMPT else "too often"
        return "crash", f"It crashed or lost its worker {times} (the broker's delivery limit on {where})."
    if death.reason == "expired":
        expiration = f" of {death.expiration} ms" if death.expiration else ""
        return "expired", f"Its time to live{expiration} ran out while it waited in {where}."
    if death.reason == "rejected":
        return "rejected", (
            f"It was rejected on {where} without a reason: its headers left no room for one, "
            "or a program other than an Ackline worker reads that queue."
        )
    if death.reason == "maxlen":
        return "queue full", f"There was no room for it: {where} is full."
    return "dead-lettered", f"The broker dead-lettered it from {where} ({death.reason or 'without a reason'})."


def _reason_of_worker(properties: Properties, trail: wire.Trail) -> str:
    said = properties.headers.text(wire.REASON)
    if said:
        return wire.cut(clean(said), wire.MAX_REASON)
    if trail.history:
        last = trail.history[-1]
        return wire.cut(clean(f"{last.error}: {last.message}"), wire.MAX_REASON)
    return f"It was put into {DEAD} without a reason."


def _death(value: Any) -> _Death | None:
    """The first entry of a decoded `x-death`; None when that is not what a broker writes."""
    entry = value[0] if isinstance(value, list) and value else None
    if not isinstance(entry, dict) or not _text(entry, "queue"):
        return None
    keys = entry.get("routing-keys")
    at = entry.get("time")
    return _Death(
        queue=name(_text(entry, "queue")),
        reason=name(_text(entry, "reason")),
        exchange=name(_text(entry, "exchange")),
        routing_key=name(keys[0]) if isinstance(keys, list) and keys and isinstance(keys[0], str) else "",
        expiration=name(_text(entry, "original-expiration")),
        at=at if isinstance(at, datetime) else None,
    )


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _entry(attempt: wire.Attempt) -> Entry:
    return {key: clean(value) if isinstance(value, str) else value for key, value in attempt.as_dict().items()}


def _attempts(trail: wire.Trail, *, last_is_counted: bool) -> int:
    """Recorded tries. On a dead letter of ours the header numbers the last one, on the way the one to come."""
    return max(len(trail.history), trail.attempt if last_is_counted else trail.attempt - 1)


def _first(trail: wire.Trail) -> datetime | None:
    return time(trail.history[0].at) if trail.history else None


def time(iso: str | None) -> datetime | None:
    """A time as our headers write it, in UTC; None for anything else."""
    try:
        found = datetime.fromisoformat(iso or "")
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _from_seconds(seconds: int | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _optional(value: bytes | None) -> str | None:
    return text(value) if value else None
