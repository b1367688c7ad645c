"""Which dead letters can be redriven, where each goes, and why the others cannot. SQL on the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, exists, select

from ackline.infra.many import among
from ackline.infra.tables import (
    DeadLetterState,
    DeliveryState,
    dead_letters,
    deliveries,
    redrive_items,
    redrives,
)

#: The consumers that take a message type.
Takers = Callable[[str], Sequence[str]]

_LETTER = tuple(
    dead_letters.c[name]
    for name in (
        *("id", "state", "consumer", "type", "message_id", "body_sha256", "version", "fingerprint", "ordering_key"),
        *("redrive_item_id", "discarded_by"),
    )
)
#: Where a dead letter goes: to the consumer that is asked for, else to its own.
_KEY = (dead_letters.c.message_id, dead_letters.c.consumer, dead_letters.c.body_sha256)


class Judged(NamedTuple):
    """A dead letter, the consumer that it would go to (empty: there is none), and why it cannot be redriven, if so."""

    row: Any
    consumer: str
    fault: str | None


def judged(
    connection: Connection, ids: Collection[int], takers: Takers, *, consumer: str | None = None, lock: bool = False
) -> list[Judged]:
    """What can be said of the dead letters *ids* from their own rows, in the order of their ids.

    takers: who takes what no consumer took. consumer: the one that all of them are to go to. lock: nobody else changes
    them until the transaction ends. Those that do not exist are left out.
    """
    rows = letters(connection, ids, lock=lock)
    held = holders(connection, rows)
    found = [_judged(row, takers, consumer, held) for row in rows]
    known = had_already(connection, [one for one in found if one.fault is None])
    return [one._replace(fault=known.get(one.row.id, one.fault)) for one in found]


def letters(connection: Connection, ids: Collection[int], *, lock: bool) -> list[Any]:
    """The rows *ids* in their order, and locked in it, so that nobody waits in a circle."""
    query = select(*_LETTER).where(among(dead_letters.c.id, ids)).order_by(dead_letters.c.id)
    return list(connection.execute(query.with_for_update() if lock else query))


def _judged(row: Any, takers: Takers, consumer: str | None, holders: Mapping[str, str]) -> Judged:
    wanted = [name for name in (consumer, row.consumer) if name] or takers(row.type)
    goes_to = wanted[0] if wanted else ""
    if row.state != DeadLetterState.IN_REVIEW:
        return Judged(row, goes_to, state_fault(row, holders))
    if not wanted:
        fault = f"no consumer in ACKLINE_APP takes messages of type {row.type!r}: deploy one, or name one to send it to"
        return Judged(row, "", fault)
    if len(wanted) > 1 and not consumer and not row.consumer:
        names = ", ".join(wanted)
        fault = (
            f"{len(wanted)} consumers take messages of type {row.type!r} ({names}), and a dead letter goes to one: "
            "name it"
        )
        return Judged(row, "", fault)
    return Judged(row, goes_to, None)


def state_fault(row: Any, holders: Mapping[str, str]) -> str:
    """Why a dead letter that is not in review cannot be redriven."""
    if row.state == DeadLetterState.REDRIVING:
        return f"it is being redriven by {holders.get(row.redrive_item_id, 'somebody')}"
    if row.state == DeadLetterState.DISCARDED:
        return f"it was discarded by {row.discarded_by}"
    return f"it is {row.state}"


def holders(connection: Connection, rows: Iterable[Any]) -> dict[str, str]:
    """Who redrives those of *rows* that somebody does, by redrive item."""
    held = [row.redrive_item_id for row in rows if row.redrive_item_id]
    if not held:
        return {}
    query = (
        select(redrive_items.c.id, redrives.c.id, redrives.c.actor)
        .join_from(redrive_items, redrives, redrive_items.c.redrive_id == redrives.c.id)
        .where(among(redrive_items.c.id, held))
    )
    return {item_id: f"{actor} (redrive {redrive_id})" for item_id, redrive_id, actor in connection.execute(query)}


def had_already(connection: Connection, going: Iterable[Judged]) -> dict[int, str]:
    """Of those that no consumer took, which become the deliveries of the one that they go to: why some cannot."""
    found: dict[int, str] = {}
    adopted = [one for one in going if not one.row.consumer]
    wanted = {(one.row.message_id, one.consumer, bytes(one.row.body_sha256)): one.row.id for one in adopted}
    if not wanted:
        return {}
    same = select(dead_letters.c.id, *_KEY).where(among(_KEY[0], {message_id for message_id, _, _ in wanted}))
    for other, message_id, consumer, digest in connection.execute(same):
        row_id = wanted.get((message_id, consumer, bytes(digest)))
        if row_id is not None:
            found[row_id] = (
                f"consumer {consumer!r} has the same message already, as dead letter {other}: discard this one"
            )
    return found


def handled_already(connection: Connection, rows: Collection[Judged]) -> set[int]:
    """The ids of those whose message its consumer has handled: a duplicate failed, or a report came late."""
    wanted: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for one in rows:
        wanted[one.row.message_id, one.consumer].add(one.row.id)
    query = select(deliveries.c.message_id, deliveries.c.consumer).where(
        among(deliveries.c.message_id, {message_id for message_id, _ in wanted}),
        deliveries.c.state == DeliveryState.HANDLED,
    )
    keys = [(message_id, consumer) for message_id, consumer in connection.execute(query)]
    return {row_id for key in keys if key in wanted for row_id in wanted[key]}


def overtaken(connection: Connection, rows: Collection[Judged]) -> set[int]:
    """The ids of those of which a newer message of the same key has been handled by the same consumer.

    Newer by their ids, which are UUIDv7; of others that cannot be told.
    """
    destinations = {one.row.id: one.consumer for one in rows if one.row.ordering_key is not None}
    found: set[int] = set()
    for consumer in set(destinations.values()):
        newer = exists().where(
            deliveries.c.consumer == consumer,
            deliveries.c.ordering_key == dead_letters.c.ordering_key,
            deliveries.c.message_id > dead_letters.c.message_id,
            deliveries.c.message_id.like(_UUID7),
            deliveries.c.state == DeliveryState.HANDLED,
            deliveries.c.ordering_key.is_not(None),
        )
        going = [row_id for row_id, goes_to in destinations.items() if goes_to == consumer]
        query = select(dead_letters.c.id).where(
            among(dead_letters.c.id, going), dead_letters.c.message_id.like(_UUID7), newer
        )
        found |= set(connection.scalars(query))
    return found


#: A UUIDv7, as SQL's LIKE can say it.
_UUID7 = "________-____-7___-____-____________"
