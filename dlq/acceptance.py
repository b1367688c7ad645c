"""The record of acceptance: which tracked messages the broker took, as the broker itself tells it.

A tracked message is published to `ackline.tracked`, which leads to `ackline.messages` and puts a copy into the queue
`ackline.accepted`. Both happen in one publish, so a confirm covers both, and neither a publisher nor a worker has to be
believed. The reviewer reads the copies into the table `accepted`, and the ledger compares it with what has become of
the messages (`ackline.dlq.ledger`). SQL on the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, exists, select
from sqlalchemy.dialects import postgresql, sqlite

from ackline.dlq.deadletter import clean, name
from ackline.infra import wire
from ackline.infra.many import among
from ackline.infra.properties import Properties
from ackline.infra.tables import accepted


class Accepted(NamedTuple):
    """A tracked message that the broker took."""

    message_id: str
    type: str
    at: datetime


def read(properties: Properties, routing_key: str | bytes, now: datetime) -> Accepted | None:
    """What a copy tells, read at *now*; None for one that is not tracked, or has no id to be found by. Never raises.

    Its time is the reviewer's, not the one that its publisher wrote, which may be any. Its type is the routing key,
    which decided who gets it.
    """
    message_id = wire.message_id(properties)
    if message_id is None or not properties.headers.flag(wire.TRACK):
        return None
    return Accepted(name(message_id), name(clean(routing_key)), now)


def record(connection: Connection, found: Iterable[Accepted]) -> None:
    """Note these; the first time of each counts, for a publisher that had no confirm publishes again."""
    # In the order of the keys, so that two reviewers never wait for each other's rows in a circle.
    rows = [one._asdict() for one in sorted({one.message_id: one for one in reversed(list(found))}.values())]
    if rows:
        connection.execute(_INSERTS[connection.dialect.name], rows)


def has_old(connection: Connection, before: datetime) -> bool:
    """Whether something was accepted before *before*."""
    return bool(connection.scalar(select(exists().where(accepted.c.at < before))))


def forget_old(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to *limit* of what was accepted before *before*. Returns how many."""
    old = select(accepted.c.message_id).where(accepted.c.at < before).limit(limit)
    return connection.execute(delete(accepted).where(accepted.c.message_id.in_(old))).rowcount


def forget(connection: Connection, message_ids: Sequence[str]) -> None:
    """Delete these: something of what became of them is forgotten, so they cannot be accounted for any more."""
    connection.execute(delete(accepted).where(among(accepted.c.message_id, message_ids)))


def _insert(insert: Any) -> Any:
    return insert(accepted).on_conflict_do_nothing(index_elements=[accepted.c.message_id])


_INSERTS = {"sqlite": _insert(sqlite.insert), "postgresql": _insert(postgresql.insert)}
