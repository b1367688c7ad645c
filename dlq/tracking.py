"""What workers report of tracked messages, folded into one row for each delivery. SQL on the caller's transaction.

Reports arrive in any order, and more than once: of several workers, after a lost connection, through several
reviewers. So a report changes the row only if it is *later* in the life of the delivery, whatever arrived first:

1. what was handled stays handled;
2. else the later redrive counts (their ids are UUIDv7, so the greater one);
3. of one redrive, or before the first, the higher attempt;
4. of one attempt: started or in progress, retried, dead, in this order;
5. of the same twice (progress; or a worker died, and the message was delivered again), the later by the clock.

Each report tells all that its row holds, but for `first_at`, the earliest of all. So the row is the same for every
order of the same reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, exists, func, literal_column, or_, select, true, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from ackline.dlq import acceptance
from ackline.dlq.outcome import Outcome
from ackline.infra import many
from ackline.infra.tables import DeliveryState, deliveries

#: The states that reports lead to, in the order of an attempt's life.
_STAGES = {DeliveryState.BEING_HANDLED: 1, DeliveryState.WAITING_FOR_RETRY: 2, DeliveryState.IN_REVIEW: 3}
#: `handled` is after all of them, and after every later attempt and redrive.
_HANDLED = 4

#: What a report that is later replaces.
_TOLD = (
    *("type", "state", "redrive", "attempts", "changed_at", "due_at", "last_error", "worker"),
    *("progress", "progress_text", "ordering_key"),
)
#: The columns of a row, in its order.
_TYPES = {name: deliveries.c[name].type for name in ("message_id", "consumer", "first_at", *_TOLD)}


def fold(connection: Connection, outcomes: Iterable[Outcome]) -> None:
    """Bring the rows of `deliveries` to what *outcomes* tell, in one statement."""
    rows: dict[tuple[str, str], Outcome] = {}
    first: dict[tuple[str, str], datetime] = {}
    for outcome in outcomes:
        key = (outcome.message_id, outcome.consumer)
        first[key] = min(first.get(key, outcome.at), outcome.at)
        if key not in rows or _rank(outcome) > _rank(rows[key]):
            rows[key] = outcome
    if not rows:
        return
    # In the order of the keys, so that two reviewers never wait for each other's rows in a circle.
    told = many.rows(connection, "told", _TYPES, [_row(rows[key], first[key]) for key in sorted(rows)])
    # `WHERE true`: else SQLite takes ON CONFLICT for the condition of a join.
    connection.execute(_upsert(_INSERTS[connection.dialect.name].from_select(list(_TYPES), select(told).where(true()))))


def has_old(connection: Connection, before: datetime) -> bool:
    """Whether there is something to forget."""
    old = select(exists().where(deliveries.c.changed_at < before))
    return bool(connection.scalar(old)) or acceptance.has_old(connection, before)


def forget(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to *limit* rows that have not changed since *before*, and as many records of acceptance. Returns the
    greater number.

    The record of a message goes first: without all its deliveries the message would look lost.
    """
    key = (deliveries.c.message_id, deliveries.c.consumer)
    old = select(*key).where(deliveries.c.changed_at < before).limit(limit)
    gone = connection.scalars(delete(deliveries).where(tuple_(*key).in_(old)).returning(key[0])).all()
    acceptance.forget(connection, gone)
    return max(len(gone), acceptance.forget_old(connection, before, limit))


def _rank(outcome: Outcome) -> tuple[int, str, int, int, datetime]:
    """Where in the life of its delivery a report is. `_rank_of` is the same in SQL."""
    is_handled = outcome.state is DeliveryState.HANDLED
    stage = _HANDLED if is_handled else _STAGES[outcome.state]
    return int(is_handled), outcome.redrive_item_id, outcome.attempt, stage, outcome.at


def _row(outcome: Outcome, first_at: datetime) -> tuple[Any, ...]:
    return (
        outcome.message_id,
        outcome.consumer,
        first_at,
        outcome.type,
        outcome.state,
        outcome.redrive_item_id or None,
        outcome.attempt,
        outcome.at,
        outcome.due_at,
        outcome.error,
        outcome.worker,
        outcome.progress,
        outcome.progress_text,
        outcome.ordering_key,
    )


Columns = ReadOnlyColumnCollection[str, Any]


def _constant(value: object) -> ColumnElement[Any]:
    """A value in the statement's own text: as parameters, these would be ten times the row's and cost as much."""
    return literal_column(repr(str(value)) if isinstance(value, str) else str(value))


def _rank_of(row: Columns) -> ColumnElement[Any]:
    state = row["state"]
    is_handled = case((state == _constant(DeliveryState.HANDLED), _constant(1)), else_=_constant(0))
    stages = [(state == _constant(name), _constant(stage)) for name, stage in _STAGES.items()]
    return tuple_(
        is_handled,
        func.coalesce(row["redrive"], _constant("")),
        row["attempts"],
        case(*stages, else_=_constant(_HANDLED)),
        row["changed_at"],
    )


def _upsert(statement: Any) -> Any:
    old, new = deliveries.c, statement.excluded
    later = _rank_of(new) > _rank_of(old)
    earlier = new["first_at"] < old["first_at"]
    return statement.on_conflict_do_update(
        index_elements=[old["message_id"], old["consumer"]],
        set_={column: case((later, new[column]), else_=old[column]) for column in _TOLD}
        | {"first_at": case((earlier, new["first_at"]), else_=old["first_at"])},
        where=or_(later, earlier),
    )


_INSERTS = {"sqlite": sqlite.insert(deliveries), "postgresql": postgresql.insert(deliveries)}
