"""What the database knows of tracked messages that were accepted in a window. SQL on the caller's transaction.

A delivery is told of by a worker's report, by a dead letter, or by both; what is later in its life counts, as in
`ackline.producer.status`. One of which nobody tells must still be in its consumer's queue. Which consumers a message
has, nobody wrote down when it was accepted: those that take its type now, and had had some of that type by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from ackline.infra.tables import DeadLetterState, DeliveryState, UtcTime, accepted, dead_letters, deliveries

#: Pairs of a consumer and a type in one query; SQLite takes up to 500.
_PAIRS = 200
#: As a first message of a type of which a consumer has had none: no message is later.
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)

#: The consumers of a type.
Takers = Mapping[str, Sequence[str]]


class Place(IntEnum):
    """Where a delivery is. Of several that are told of one delivery the first counts."""

    HANDLED = 0
    IN_REVIEW = 1
    REDRIVING = 2
    HANDLED_AFTER_REVIEW = 3
    DISCARDED = 4
    WAITING_FOR_RETRY = 5
    BEING_HANDLED = 6
    REPORTED_DEAD = 7  # and the dead letter is not there


#: What was last known of a delivery.
NOTHING, SENT_TO_REVIEW = "nothing", "sent to review"
#: In one of these a delivery is still in its consumer's queue, or in a retry tier.
UNFINISHED = (Place.BEING_HANDLED, Place.WAITING_FOR_RETRY)

_REPORTED = {
    DeliveryState.HANDLED: Place.HANDLED,
    DeliveryState.WAITING_FOR_RETRY: Place.WAITING_FOR_RETRY,
    DeliveryState.BEING_HANDLED: Place.BEING_HANDLED,
    DeliveryState.IN_REVIEW: Place.REPORTED_DEAD,
}
_KEPT = {
    DeadLetterState.IN_REVIEW: Place.IN_REVIEW,
    DeadLetterState.REDRIVING: Place.REDRIVING,
    DeadLetterState.HANDLED: Place.HANDLED_AFTER_REVIEW,
    DeadLetterState.DISCARDED: Place.DISCARDED,
}


class Window(NamedTuple):
    """Messages accepted from *since* on and before *until*; of one consumer, if one is named."""

    since: datetime
    until: datetime
    consumer: str | None = None


class Delivery(NamedTuple):
    """A delivery that cannot be found, and what was last known of it."""

    message_id: str
    consumer: str
    type: str
    accepted_at: datetime
    last: str


@dataclass(slots=True)
class Known:
    """What is known of the deliveries to one consumer.

    untold: nobody tells of them, and they are this consumer's. doubtful: nobody tells of them, and they may be from
    before this consumer took their type.
    """

    places: dict[Place, int] = field(default_factory=dict)
    untold: int = 0
    doubtful: int = 0

    def at(self, *places: Place) -> int:
        """How many are in *places*."""
        return sum(self.places.get(place, 0) for place in places)


def latest(connection: Connection, until: datetime) -> datetime | None:
    """When the last message before *until* was accepted; None when none was."""
    found: datetime | None = connection.scalar(select(func.max(accepted.c.at)).where(accepted.c.at < until))
    return found


def consumers_seen(connection: Connection) -> dict[tuple[str, str], datetime]:
    """For each (consumer, type) that something is told of, when the first such message was accepted."""
    told = _told(true())
    query = select(told.c.consumer, told.c.type, func.min(told.c.at)).group_by(told.c.consumer, told.c.type)
    return {(consumer, type_): at for consumer, type_, at in connection.execute(query)}


def known(
    connection: Connection, window: Window, takers: Takers, seen: Mapping[tuple[str, str], datetime]
) -> dict[str, Known]:
    """What is known of each consumer's deliveries; of those that no consumer takes under the name ''."""
    found: dict[str, Known] = {}
    places = _places(window).subquery()
    query = select(places.c.consumer, places.c.place, func.count()).group_by(places.c.consumer, places.c.place)
    for consumer, place, count in connection.execute(query):
        found.setdefault(consumer, Known()).places[Place(place)] = count
    for untold in _untold(window, takers, seen):
        rows = untold.subquery()
        query = select(rows.c.consumer, rows.c.certain, func.count()).group_by(rows.c.consumer, rows.c.certain)
        for consumer, certain, count in connection.execute(query):
            of = found.setdefault(consumer, Known())
            if certain:
                of.untold += count
            else:
                of.doubtful += count
    return found


def unfinished(
    connection: Connection, window: Window, takers: Takers, seen: Mapping[tuple[str, str], datetime], limit: int
) -> list[Delivery]:
    """Up to *limit* deliveries that must be in a queue, first those of which nobody tells; each the oldest first."""
    found: list[Delivery] = []
    for some in _untold(window, takers, seen):
        rows = some.subquery()
        untold: Select[Any] = select(rows).where(rows.c.certain == 1).order_by(rows.c.at).limit(limit)
        for row in connection.execute(untold):
            found.append(Delivery(row.message_id, row.consumer, row.type, row.at, NOTHING))
    places = _places(window).subquery()
    said = {
        Place.BEING_HANDLED: "being handled",
        Place.WAITING_FOR_RETRY: "waiting for a retry",
        Place.REPORTED_DEAD: SENT_TO_REVIEW,
    }
    told: Select[Any] = (
        select(places.c.message_id, places.c.consumer, places.c.type, places.c.at, places.c.place)
        .where(places.c.place.in_(said))
        .order_by(places.c.place.desc(), places.c.at)
        .limit(limit)
    )
    for row in connection.execute(told):
        found.append(Delivery(row.message_id, row.consumer, row.type, row.at, said[Place(row.place)]))
    return found[:limit]


def _in(window: Window) -> ColumnElement[bool]:
    return and_(accepted.c.at >= window.since, accepted.c.at < window.until)


def _told(where: ColumnElement[bool]) -> Any:
    """All that is told of accepted messages, as (message_id, type, at, consumer, place)."""
    tables = ((deliveries, _REPORTED), (dead_letters, _KEPT))
    return union_all(
        *(
            select(
                accepted.c.message_id,
                accepted.c.type,
                accepted.c.at,
                table.c.consumer,
                case(
                    *((table.c.state == state, literal_column(str(int(place)))) for state, place in places.items())
                ).label("place"),
            )
            .join_from(accepted, table, accepted.c.message_id == table.c.message_id)
            .where(where)
            for table, places in tables
        )
    ).subquery()


def _places(window: Window) -> Select[Any]:
    """Each delivery that is told of, and where it is."""
    told = _told(_in(window))
    query = select(
        told.c.message_id,
        told.c.consumer,
        func.min(told.c.type).label("type"),
        func.min(told.c.at).label("at"),
        func.min(told.c.place).label("place"),
    ).group_by(told.c.message_id, told.c.consumer)
    return query if window.consumer is None else query.where(told.c.consumer == window.consumer)


def _untold(window: Window, takers: Takers, seen: Mapping[tuple[str, str], datetime]) -> Iterator[Select[Any]]:
    """Queries of the deliveries that nobody tells of, as (consumer, message_id, type, at, certain)."""
    wanted = window.consumer
    told = or_(
        exists().where(deliveries.c.message_id == accepted.c.message_id),
        exists().where(dead_letters.c.message_id == accepted.c.message_id),
    )
    columns = (accepted.c.message_id, accepted.c.type, accepted.c.at)
    if not wanted:
        one: ColumnElement[int] = literal_column("1").label("certain")
        nobody = select(literal("", Text).label("consumer"), *columns, one)
        yield nobody.where(_in(window), accepted.c.type.not_in([name for name, some in takers.items() if some]), ~told)
    pairs = [
        (consumer, type_, seen.get((consumer, type_), _NEVER))
        for type_, consumers in sorted(takers.items())
        for consumer in consumers
        if wanted in (None, consumer)
    ]
    for start in range(0, len(pairs), _PAIRS):
        pair = union_all(
            *(
                select(
                    literal(consumer, Text).label("consumer"),
                    literal(type_, Text).label("type"),
                    literal(first, UtcTime).label("first"),
                )
                for consumer, type_, first in pairs[start : start + _PAIRS]
            )
        ).subquery()
        reported = exists().where(
            deliveries.c.message_id == accepted.c.message_id, deliveries.c.consumer == pair.c.consumer
        )
        kept = exists().where(
            dead_letters.c.message_id == accepted.c.message_id, dead_letters.c.consumer.in_((pair.c.consumer, ""))
        )
        certain = case((accepted.c.at >= pair.c.first, literal_column("1")), else_=literal_column("0"))
        yield (
            select(pair.c.consumer, *columns, certain.label("certain"))
            .join_from(accepted, pair, accepted.c.type == pair.c.type)
            .where(_in(window), ~reported, ~kept)
        )
