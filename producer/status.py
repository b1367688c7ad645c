"""What has become of a message: the state of each of its deliveries, and one of the whole.

Three tables know, each what the others do not, and they are read together:

- `deliveries`: what workers report of tracked messages. What was handled stays handled, whatever arrives later.
- `dead_letters`: what is in review, redriving or discarded, of messages that are not tracked as well.
- `ackline_outbox`: what has not been published yet, or was cancelled before it was.

A message that none of them knows is waiting, if it was accepted at all: that costs no row, so only a proof of the
acceptance tells (see `ackline.producer.gateway.signing`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Table, select

from ackline.infra.settings import Settings
from ackline.infra.tables import DeadLetterState, DeliveryState, OutboxState, dead_letters, deliveries, outbox

#: The consumers that each message type is for.
Consumers = Mapping[str, Sequence[str]]
#: A message by its id, and its type where the one who asks knows it.
Asked = tuple[str, str | None]

#: Names in one `IN (...)`; both databases take many more.
_CHUNK = 500


class State(StrEnum):
    """Where a message or a delivery is. The first five are a message's own, before it has deliveries."""

    SCHEDULED = "scheduled"
    ACCEPTED = "accepted"
    CANCELLED = "cancelled"
    FAILED = "failed"
    WAITING = "waiting"
    BEING_HANDLED = "being handled"
    WAITING_FOR_RETRY = "waiting for a retry"
    HANDLED = "handled"
    IN_REVIEW = "in review"
    REDRIVING = "redriving"
    DISCARDED = "discarded"


#: A delivery in one of these is over.
FINAL = (State.HANDLED, State.DISCARDED)
#: A message is in the first of these that one of its deliveries is in: what needs somebody most comes first.
_WHOLE = (
    State.IN_REVIEW,
    State.REDRIVING,
    State.WAITING_FOR_RETRY,
    State.BEING_HANDLED,
    State.WAITING,
    State.DISCARDED,
    State.HANDLED,
)


class Delivery(BaseModel):
    """What is known of one delivery. Times are in UTC."""

    model_config = ConfigDict(frozen=True)

    #: None when no consumer takes the type.
    consumer: str | None
    state: State
    #: Recorded tries of the handler, one that goes on and those of redrives included.
    attempts: int = 0
    #: When something was first known of it, and last.
    first_at: datetime | None = None
    changed_at: datetime | None = None
    #: While it waits for a retry: not before then.
    due_at: datetime | None = None
    #: Why the last try failed, or why it is in review.
    error: str | None = None
    #: While it is being handled, and its handler tells: how far it is, from 0 to 1, and what it says of that.
    progress: float | None = None
    progress_text: str | None = None


class Status(BaseModel):
    """What is known of a message.

    state: of the delivery that needs somebody most; of the message itself before it has any. is_final: nothing changes
    any more: every delivery that is expected was handled or discarded, or the message was cancelled.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    type: str
    state: State
    is_final: bool
    #: While it is scheduled: when it will be published.
    due_at: datetime | None = None
    #: Why it could not be published.
    error: str | None = None
    deliveries: tuple[Delivery, ...] = ()


def status(connection: Connection, message_id: str, *, type: str | None = None, consumers: Consumers) -> Status | None:  # noqa: A002
    """What is known of a message; None when nothing is: it was never accepted, or nothing has been reported yet.

    type: rows of other types are left out. When None, the type is the one that is found. consumers: as `expected` gives
    them. Raises nothing of its own; the caller's `database.reading` says when the database is away.
    """
    asked = (message_id, type)
    return statuses(connection, [asked], consumers=consumers).get(asked)


def statuses(connection: Connection, asked: Iterable[Asked], *, consumers: Consumers) -> dict[Asked, Status]:
    """`status` of many at once, in three queries for some hundreds; those of which nothing is known are left out."""
    wanted = list(dict.fromkeys(asked))
    ids = list(dict.fromkeys(message_id for message_id, _ in wanted))
    reported = _rows(connection, deliveries, _REPORTED, ids)
    dead = _rows(connection, dead_letters, _DEAD, ids)
    unpublished = _rows(connection, outbox, _UNPUBLISHED, ids)
    found: dict[Asked, Status] = {}
    for message_id, type_ in wanted:
        rows = (reported[message_id], dead[message_id], unpublished[message_id])
        known_as = type_ if type_ is not None else next((row.type for some in rows for row in some), None)
        if known_as is None:
            continue
        reports, deaths, entries = ([row for row in some if row.type == known_as] for some in rows)
        if reports or deaths or entries:
            found[message_id, type_] = _status(
                message_id, known_as, reports, deaths, entries, consumers.get(known_as, ())
            )
    return found


def waiting(message_id: str, type: str, consumers: Consumers) -> Status:  # noqa: A002
    """The status of a message that was accepted, and of which nothing has been reported yet."""
    return _of_deliveries(message_id, type, [], consumers.get(type, ()))


def expected(settings: Settings) -> dict[str, list[str]]:
    """The consumers that each message type of the configured application is for.

    They come by the entry point group `ackline.consumers`: the producer's side imports nothing above it.
    """
    takers: dict[str, list[str]] = defaultdict(list)
    for point in entry_points(group="ackline.consumers"):
        for queue in point.load()(settings):
            for type_ in queue.types:
                takers[type_].append(queue.name)
    return {type_: sorted(names) for type_, names in takers.items()}


# --- what the tables say ----------------------------------------------------------------------------------------------

_REPORTED = (
    *("type", "consumer", "state", "redrive", "attempts", "first_at", "changed_at", "due_at", "last_error"),
    *("progress", "progress_text"),
)
_DEAD = (
    *("id", "type", "consumer", "state", "reason", "attempts", "redrive_item_id"),
    *("first_failed_at", "last_seen_at", "handled_at", "discarded_at"),
)
_UNPUBLISHED = ("id", "type", "state", "due_at", "error")


def _rows(connection: Connection, table: Table, columns: Sequence[str], ids: Sequence[str]) -> dict[str, list[Any]]:
    """The rows of these messages, by message id."""
    found: dict[str, list[Any]] = defaultdict(list)
    query = select(table.c.message_id, *(table.c[name] for name in columns))
    for start in range(0, len(ids), _CHUNK):
        for row in connection.execute(query.where(table.c.message_id.in_(ids[start : start + _CHUNK]))):
            found[row.message_id].append(row)
    return found


def _status(
    message_id: str,
    type_: str,
    reported: Sequence[Any],
    dead: Sequence[Any],
    unpublished: Sequence[Any],
    expected_consumers: Sequence[str],
) -> Status:
    if reported or dead or not unpublished:
        return _of_deliveries(message_id, type_, _deliveries(reported, dead), expected_consumers)
    row = max(unpublished, key=lambda row: int(row.id))
    if row.state == OutboxState.PUBLISHED:
        return _of_deliveries(message_id, type_, [], expected_consumers)
    if row.state == OutboxState.WAITING:
        state = State.ACCEPTED if row.due_at is None else State.SCHEDULED
        return Status(id=message_id, type=type_, state=state, is_final=False, due_at=row.due_at, error=row.error)
    is_final = row.state == OutboxState.CANCELLED  # one that failed can be published again
    return Status(id=message_id, type=type_, state=State(row.state), is_final=is_final, error=row.error)


def _of_deliveries(message_id: str, type_: str, known: list[Delivery], expected_consumers: Sequence[str]) -> Status:
    if all(delivery.consumer is not None for delivery in known):  # else no consumer took it
        missing = set(expected_consumers) - {delivery.consumer for delivery in known}
        known = [*known, *(Delivery(consumer=name, state=State.WAITING) for name in missing)]
    states = {delivery.state for delivery in known}
    return Status(
        id=message_id,
        type=type_,
        state=next((state for state in _WHOLE if state in states), State.WAITING),
        is_final=bool(known) and states.issubset(FINAL),
        deliveries=tuple(sorted(known, key=lambda delivery: delivery.consumer or "")),
    )


def _deliveries(reported: Sequence[Any], dead: Sequence[Any]) -> list[Delivery]:
    by_consumer = {row.consumer: row for row in reported}
    dead_by_consumer: dict[str, Any] = {}
    # Of several with the same id (and another body), the latest that is not over, else the latest.
    for row in sorted(dead, key=lambda row: (row.state not in FINAL, row.id)):
        dead_by_consumer[row.consumer] = row
    return [
        _delivery(consumer, by_consumer.get(consumer), dead_by_consumer.get(consumer))
        for consumer in {**by_consumer, **dead_by_consumer}
    ]


def _delivery(consumer: str, reported: Any | None, dead: Any | None) -> Delivery:
    """One delivery, of which a worker has reported, or the reviewer has a dead letter, or both."""
    if dead is None:
        assert reported is not None  # noqa: S101
        return _as_reported(reported)
    known = _as_kept(consumer, dead)
    if reported is None:
        return known
    told = _as_reported(reported)
    first_at = min(reported.first_at, dead.first_failed_at)
    is_handled = DeliveryState.HANDLED in (reported.state, dead.state)
    under_way = dead.state == DeadLetterState.REDRIVING and reported.redrive == dead.redrive_item_id
    if not is_handled and not under_way:
        return known.model_copy(update={"first_at": first_at})
    # A redrive begins to count anew, after the tries that the dead letter has.
    tries = known.attempts + told.attempts if reported.redrive else max(known.attempts, told.attempts)
    return told.model_copy(
        update={
            "state": State.HANDLED if is_handled else told.state,
            "attempts": tries,
            "first_at": first_at,
            "error": None if is_handled else told.error or known.error,
        }
    )


def _as_kept(consumer: str, row: Any) -> Delivery:
    return Delivery(
        consumer=consumer or None,
        state=State(row.state),
        attempts=row.attempts,
        first_at=row.first_failed_at,
        changed_at=max(at for at in (row.last_seen_at, row.handled_at, row.discarded_at) if at is not None),
        error=None if row.state == DeadLetterState.HANDLED else row.reason,
    )


def _as_reported(row: Any) -> Delivery:
    return Delivery(
        consumer=row.consumer,
        state=State(row.state),
        attempts=row.attempts,
        first_at=row.first_at,
        changed_at=row.changed_at,
        due_at=row.due_at,
        error=row.last_error,
        progress=row.progress,
        progress_text=row.progress_text,
    )
