"""Sending dead letters back: who claims a row, what is sent, and what came of it. SQL on the caller's transaction.

An item goes `waiting -> issued -> confirmed -> handled | failed`. *Issued* is committed before the publish and
*confirmed* after it. A crash between the two leaves an issued item whose claim runs out, and it is published again: the
message may then arrive twice, and never not at all. Only a worker's report makes it `handled`; only its dead letter
makes it `failed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, insert, or_, select, update

from ackline.dlq.audit import REVIEWER
from ackline.dlq.errors import NoSuchDeadLetter, Refused
from ackline.dlq.lifecycle import applied_at, handled_flag
from ackline.dlq.outcome import Outcome
from ackline.dlq.transition import Transitions, transitions
from ackline.infra.properties import Properties
from ackline.infra.tables import (
    IS_UNSENT,
    OPEN_ITEM_STATES,
    DeadLetterState,
    ItemState,
    RedriveState,
    dead_letters,
    redrive_items,
    redrives,
)
from ackline.infra.wire import Trail, now, republished, trail, uuid7

_SENT = redrive_items.c.dead_letter_id == dead_letters.c.id
#: The consumers that take each message type.
Consumers = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Requested:
    """What became of a request: the item of each dead letter that is on its way, the reason of each that is not."""

    items: dict[int, str]
    refused: dict[int, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """An item to publish now. Nobody else publishes it before the claim runs out."""

    item_id: str
    dead_letter_id: int
    consumer: str
    properties: Properties
    payload: bytes


# --- a person asks for it -----------------------------------------------------------------------------------------


def request(connection: Connection, ids: Iterable[int], actor: str, consumers: Consumers) -> Requested:
    """Claim the rows *ids* for a redrive by *actor*; the reviewer sends them.

    consumers: who takes a row that no consumer took.
    """
    redrive_id: int | None = None
    asked = Requested({}, {})
    with transitions(connection) as moves:
        for row_id in dict.fromkeys(ids):
            try:
                consumer = _destination(connection, row_id, consumers)
                item_id = uuid7()
                _claim_row(connection, moves, row_id, consumer, item_id)
            except (Refused, NoSuchDeadLetter) as error:
                asked.refused[row_id] = str(error)
                continue
            redrive_id = redrive_id or _begin(connection, actor, row_id)
            _add_item(connection, redrive_id, row_id, consumer, item_id)
            asked.items[row_id] = item_id
        moves.record(actor, "redrive", "", asked.items, DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING)
    return asked


def _begin(connection: Connection, actor: str, row_id: int) -> int:
    at = now()
    values = {
        "created_at": at,
        "actor": actor,
        "reason": "",
        "state": RedriveState.RUNNING,
        "selection": {},
        "newest_id": row_id,
        "planned_to": row_id,
        "options": {},
        "canary": False,
        "run": 1,
        "run_from": 0,
        "stage": 0,
        "paced_from": 0,
        "sent": 0,
        "started_at": at,
        "started_by": actor,
    }
    return int(connection.execute(insert(redrives).values(values).returning(redrives.c.id)).scalar_one())


def _add_item(connection: Connection, redrive_id: int, row_id: int, consumer: str, item_id: str) -> None:
    row = connection.execute(
        select(dead_letters.c.version, dead_letters.c.fingerprint).where(dead_letters.c.id == row_id)
    ).one()
    connection.execute(
        insert(redrive_items).values(
            id=item_id,
            redrive_id=redrive_id,
            dead_letter_id=row_id,
            consumer=consumer,
            version=row.version,
            fingerprint=row.fingerprint,
            state=ItemState.WAITING,
        )
    )


def _destination(connection: Connection, row_id: int, consumers: Consumers) -> str:
    """The consumer that row *row_id* goes to. Raises `Refused` when there is none, or more than one."""
    columns = dead_letters.c
    row = connection.execute(
        select(columns.consumer, columns.type, columns.message_id, columns.body_sha256).where(columns.id == row_id)
    ).one_or_none()
    if row is None:
        raise NoSuchDeadLetter(f"There is no dead letter {row_id}.")
    if row.consumer:
        return str(row.consumer)
    takers = consumers.get(row.type, ())
    if not takers:
        raise Refused(
            f"Dead letter {row_id} cannot be redriven: no consumer in ACKLINE_APP takes messages of type {row.type!r}. "
            "Deploy one, then retry."
        )
    if len(takers) > 1:
        raise Refused(
            f"Dead letter {row_id} cannot be redriven: {len(takers)} consumers take messages of type {row.type!r} "
            f"({', '.join(takers)}), and a dead letter goes to one. Publish it again, or discard it."
        )
    is_known = select(columns.id).where(
        columns.message_id == row.message_id, columns.consumer == takers[0], columns.body_sha256 == row.body_sha256
    )
    other = connection.execute(is_known).scalar_one_or_none()
    if other is not None:
        raise Refused(
            f"Dead letter {row_id} cannot be redriven: consumer {takers[0]!r} has the same message already, "
            f"as dead letter {other}. Discard this one."
        )
    return takers[0]


def _claim_row(connection: Connection, moves: Transitions, row_id: int, consumer: str, item_id: str) -> None:
    """Take the row for *item_id*: of two who try at once, one gets it. Raises `Refused`."""
    # A row that no consumer took becomes the delivery of the one that it now goes to.
    columns = {"redrive_item_id": item_id, "consumer": consumer, "send_error": None}
    if not moves.move([row_id], DeadLetterState.IN_REVIEW, DeadLetterState.REDRIVING, **columns):
        state = connection.execute(select(dead_letters.c.state).where(dead_letters.c.id == row_id)).scalar_one()
        raise Refused(f"Dead letter {row_id} cannot be redriven: it is {state}.")


# --- the reviewer sends it ----------------------------------------------------------------------------------------


def _to_send(at: datetime) -> ColumnElement[bool]:
    items = redrive_items.c
    return and_(IS_UNSENT, or_(items.claimed_until.is_(None), items.claimed_until < at))


def looking() -> Select[tuple[bool]]:
    """The query whether there is anything to claim now: a look in a small index, for who asks three times a second."""
    return select(exists(select(redrive_items.c.id).where(_to_send(now()))))


def is_waiting(connection: Connection) -> bool:
    """Whether there is anything to claim."""
    return bool(connection.execute(looking()).scalar())


def claim(connection: Connection, moves: Transitions, limit: int, seconds: float) -> list[Claim]:
    """Mark up to *limit* items as issued and keep them for *seconds*. Publish them after the commit, not before."""
    at = now()
    items = redrive_items.c
    ids = connection.scalars(
        select(items.id).where(_to_send(at)).order_by(items.id).limit(limit).with_for_update(skip_locked=True)
    ).all()
    if not ids:
        return []
    connection.execute(
        update(redrive_items)
        .where(items.id.in_(ids))
        .values(state=ItemState.ISSUED, issued_at=at, claimed_until=at + timedelta(seconds=seconds))
    )
    columns = dead_letters.c
    query = select(
        items.id.label("item_id"),
        items.consumer,
        columns.id,
        columns.message_id,
        columns.properties,
        columns.trusted,
        columns.exchange,
        columns.routing_key,
        columns.payload,
    ).join_from(redrive_items, dead_letters, _SENT)
    claims = []
    for row in connection.execute(query.where(items.id.in_(ids)).order_by(items.id)).all():
        try:
            claims.append(_claim(row))
        except (ValueError, TypeError, OverflowError) as error:  # nothing about one message may hold up the others
            not_sent(connection, moves, row.item_id, f"could not be sent: {error}")
    return claims


def _claim(row: Any) -> Claim:
    stored = Properties.from_wire(row.properties)
    if not stored.message_id:  # then the row's own is the id for life
        stored = stored.copy(message_id=row.message_id)
    came = trail(stored, row.exchange, row.routing_key, trusted=row.trusted)
    way = Trail(
        consumer=row.consumer,
        redrive=row.item_id,
        track=came.track,
        exchange=row.exchange,
        routing_key=row.routing_key,
        set_aside=came.set_aside,
    )
    return Claim(row.item_id, row.id, row.consumer, republished(stored, way), row.payload)


def confirmed(connection: Connection, item_ids: Sequence[str]) -> None:
    """The broker has these. A worker may have answered already: then that stands."""
    connection.execute(
        update(redrive_items)
        .where(redrive_items.c.id.in_(item_ids), redrive_items.c.state == ItemState.ISSUED)
        .values(state=ItemState.CONFIRMED, confirmed_at=now(), error=None)
    )


def put_off(connection: Connection, item_id: str, why: str, seconds: float) -> None:
    """It is not known to be sent: publish it again in *seconds*."""
    connection.execute(
        update(redrive_items)
        .where(redrive_items.c.id == item_id, redrive_items.c.state == ItemState.ISSUED)
        .values(claimed_until=now() + timedelta(seconds=seconds), error=why)
    )


def not_sent(connection: Connection, moves: Transitions, item_id: str, why: str) -> None:
    """It cannot be sent: its row is in review again, with *why*."""
    before, after = DeadLetterState.REDRIVING, DeadLetterState.IN_REVIEW
    rows = connection.scalars(select(dead_letters.c.id).where(dead_letters.c.redrive_item_id == item_id)).all()
    freed = moves.move(rows, before, after, redrive_item_id=None, send_error=why)
    _finish(connection, [item_id], ItemState.NOT_SENT, why)
    moves.record(REVIEWER, "not sent", why, freed, before, after)


# --- a worker reports it ------------------------------------------------------------------------------------------


def succeeded(connection: Connection, moves: Transitions, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Note that these were handled. Returns those that answer no redrive of ours."""
    by_item = {outcome.redrive_item_id: outcome for outcome in outcomes}
    query = (
        select(
            redrive_items.c.id.label("item_id"),
            redrive_items.c.consumer.label("sent_to"),
            dead_letters.c.id,
            dead_letters.c.state,
            dead_letters.c.redrive_item_id,
            dead_letters.c.flags,
        )
        .join_from(redrive_items, dead_letters, _SENT)
        .where(redrive_items.c.id.in_(by_item))
        .order_by(dead_letters.c.id)
        .with_for_update(of=dead_letters)
    )
    for row in connection.execute(query).all():
        if row.sent_to == by_item[row.item_id].consumer:
            _handled(connection, moves, row, by_item.pop(row.item_id))
    return list(by_item.values())


def _handled(connection: Connection, moves: Transitions, row: Any, outcome: Outcome) -> None:
    if row.state not in (DeadLetterState.HANDLED, DeadLetterState.DISCARDED):
        before, after = DeadLetterState(row.state), DeadLetterState.HANDLED
        at = applied_at(now(), outcome.at)
        moves.move([row.id], before, after, handled_at=at, redrive_item_id=None, send_error=None)
        moves.record(REVIEWER, "handled", f"by {outcome.worker}", [row.id], before, after)
    flag = handled_flag(row.state, row.redrive_item_id == row.item_id)
    if flag and flag not in row.flags:
        connection.execute(update(dead_letters).where(dead_letters.c.id == row.id).values(flags=[*row.flags, flag]))
    if row.redrive_item_id not in (None, row.item_id):
        _finish(connection, [row.redrive_item_id], ItemState.SUPERSEDED, "an earlier redrive was handled")
    connection.execute(
        update(redrive_items)
        .where(redrive_items.c.id == row.item_id)
        .values(state=ItemState.HANDLED, finished_at=now(), error=None)
    )


def _finish(connection: Connection, item_ids: Sequence[str], state: ItemState, why: str) -> None:
    connection.execute(
        update(redrive_items)
        .where(redrive_items.c.id.in_(item_ids), redrive_items.c.state.in_(OPEN_ITEM_STATES))
        .values(state=state, finished_at=now(), error=why)
    )
