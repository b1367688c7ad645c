"""The transactional outbox: messages as rows of the caller's own database, published by `ackline relay`.

A row is written in the transaction of whatever it tells about, so the message is published if and only if that was
committed. Its life:

```
            add / put
                │
   due_at ──────┴────── no due time
      │                     │
      ▼     it is due       ▼   the broker has confirmed it
  scheduled ────────────► waiting ────────────► published ──┐
      │      (relay)        ▲  │                            ├─► deleted after ACKLINE_OUTBOX_KEEP_SECONDS
      │ cancel        retry │  │ the broker will never      │
      ▼                     │  ▼ take it as it is           │
  cancelled ◄────────────── failed                          │
      └─────────────────────────────────────────────────────┘
```

`waiting` and `scheduled` are one state in the table: a row is scheduled while it has a `due_at`. When that has come,
the relay takes the time away before it publishes the row, and `cancel` wants one that has it, so that of the two
exactly one wins, whatever their clocks say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Select, and_, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.orm import Session, scoped_session

from ackline.infra.tables import IS_IN_OUTBOX, OutboxState, create_missing, has_all, outbox, outbox_metadata
from ackline.infra.wire import now
from ackline.producer.envelope import Entry, InvalidDueTime, due_time, enclose

__all__ = [
    "Entry",
    "InvalidDueTime",
    "Stored",
    "add",
    "cancel",
    "create_tables",
    "depth",
    "due_time",
    "enclose",
    "find",
    "has_tables",
    "is_backlogged",
    "listed",
    "put",
    "retry",
    "scheduled",
]

#: What runs statements in the caller's transaction.
Transaction: TypeAlias = Connection | Session | scoped_session[Any]


class Stored(NamedTuple):
    """A row of an outbox, without its payload.

    id: the order of publishing. due_at: not before then; None once that time has come. error: why it failed, or why it
    could not be published yet. finished_at: when it was published, cancelled, or failed.
    """

    id: int
    message_id: str
    type: str
    state: OutboxState
    created_at: datetime
    due_at: datetime | None
    error: str | None
    finished_at: datetime | None


_STORED = tuple(outbox.c[name] for name in Stored._fields)


# --- for who publishes ------------------------------------------------------------------------------------------------


def add(
    transaction: Transaction,
    instance: BaseModel,
    *,
    message_id: str | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, Any] | None = None,
    track: bool | None = None,
    delay: timedelta | float | None = None,
    deliver_at: datetime | None = None,
    app_id: str | None = None,
) -> str:
    """Have *instance* published when *transaction* is committed, and only then. Returns its message id.

    transaction: a `Session` or `Connection`; with asyncio `await session.run_sync(outbox.add, instance)`.
    message_id: a new UUIDv7 when not given. track: as its contract says when not given. delay (from now, in seconds
    when it is a number), deliver_at (an aware time): not before then; up to years ahead. app_id: the service,
    `ACKLINE_SERVICE` when not given.

    Guarantees: published at least once after the commit, in the order of the rows; never after a rollback.
    Raises `InvalidMessage`, `MessageTooLarge`, `InvalidDueTime`, and what the database raises.
    """
    entry = enclose(
        instance,
        message_id=message_id,
        correlation_id=correlation_id,
        headers=headers,
        track=track,
        delay=delay,
        deliver_at=deliver_at,
        app_id=app_id,
    )
    put(transaction, [entry])
    return entry.message_id


def put(transaction: Transaction, entries: Sequence[Entry]) -> None:
    """Have *entries* published in this order when *transaction* is committed, and only then."""
    if not isinstance(transaction, (Connection, Session, scoped_session)):
        # An AsyncSession would return a coroutine that nobody awaits, and the message would be gone without a word.
        raise TypeError(
            f"A message cannot be added to a {type(transaction).__name__}: give a Session or a Connection; "
            "with asyncio, `await session.run_sync(outbox.add, message)`."
        )
    if entries:
        created_at = now()
        transaction.execute(insert(outbox), [_row(entry, created_at) for entry in entries])


def _row(entry: Entry, created_at: datetime) -> dict[str, Any]:
    return {
        "message_id": entry.message_id,
        "type": entry.type,
        "properties": entry.properties.wire,
        "payload": entry.payload,
        "created_at": created_at,
        "due_at": entry.due_at,
        "state": OutboxState.WAITING,
    }


# --- for who asks -----------------------------------------------------------------------------------------------------


def is_backlogged(transaction: Transaction) -> bool:
    """Whether anything waits to be published that is not scheduled for later."""
    return transaction.execute(select(outbox.c.id).where(_is_due()).limit(1)).first() is not None


def depth(transaction: Transaction) -> int:
    """How many wait to be published, those that are scheduled for later not counted."""
    return transaction.execute(select(func.count()).select_from(outbox).where(_is_due())).scalar_one()


def _is_due() -> Any:
    return and_(IS_IN_OUTBOX, or_(outbox.c.due_at.is_(None), outbox.c.due_at <= now()))


def find(transaction: Transaction, message_id: str) -> Stored | None:
    """The newest row of that message; None when there is none, or it has been cleaned up."""
    newest = select(*_STORED).where(outbox.c.message_id == message_id).order_by(outbox.c.id.desc()).limit(1)
    rows = _stored(transaction, newest)
    return rows[0] if rows else None


def listed(transaction: Transaction, state: OutboxState, limit: int, after: int = 0) -> list[Stored]:
    """Rows in that state, in the order of publishing, from the one after the id *after*; `waiting`: not for a time."""
    rows = select(*_STORED).where(outbox.c.state == state, outbox.c.id > after)
    if state == OutboxState.WAITING:
        rows = rows.where(IS_IN_OUTBOX, outbox.c.due_at.is_(None))
    return _stored(transaction, rows.order_by(outbox.c.id).limit(limit))


def scheduled(transaction: Transaction, limit: int, after: tuple[datetime, int] | None = None) -> list[Stored]:
    """Rows that wait for their time, the next one first; *after*: (due_at, id) of the last one seen."""
    rows = select(*_STORED).where(IS_IN_OUTBOX, outbox.c.due_at.is_not(None))
    if after is not None:
        last = tuple_(literal(after[0], outbox.c.due_at.type), after[1])
        rows = rows.where(tuple_(outbox.c.due_at, outbox.c.id) > last)
    return _stored(transaction, rows.order_by(outbox.c.due_at, outbox.c.id).limit(limit))


def _stored(transaction: Transaction, rows: Select[*tuple[Any, ...]]) -> list[Stored]:
    return [Stored(*row)._replace(state=OutboxState(row.state)) for row in transaction.execute(rows)]


# --- for who changes his mind -----------------------------------------------------------------------------------------


def cancel(transaction: Transaction, message_id: str, *, failed: bool = False) -> bool:
    """Have a scheduled message not published. Whether it was so cancelled: if not, the relay has it already.

    failed: also one that failed.
    """
    is_open = and_(IS_IN_OUTBOX, outbox.c.due_at.is_not(None))
    if failed:
        is_open = or_(is_open, outbox.c.state == OutboxState.FAILED)
    cancelled = (
        update(outbox)
        .where(outbox.c.message_id == message_id, is_open)
        .values(state=OutboxState.CANCELLED, finished_at=now())
    )
    return transaction.execute(cancelled.returning(outbox.c.id)).first() is not None


def retry(transaction: Transaction, message_id: str) -> bool:
    """Have a failed message published after all. Whether there was one."""
    waiting = (
        update(outbox)
        .where(outbox.c.message_id == message_id, outbox.c.state == OutboxState.FAILED)
        .values(state=OutboxState.WAITING, finished_at=None, error=None)
    )
    return transaction.execute(waiting.returning(outbox.c.id)).first() is not None


# --- the tables -------------------------------------------------------------------------------------------------------


def has_tables(connection: Connection) -> bool:
    """Whether this database has the tables of an outbox."""
    return has_all(connection, outbox_metadata)


def create_tables(bind: Engine | Connection) -> None:
    """Create the tables of an outbox where they are missing: in a transaction of its own, or in that of a connection.

    Safe when several do it at once. A service with migrations of its own adds `outbox_metadata` to their metadata
    instead (docs/outbox.md).
    """
    create_missing(bind, outbox_metadata)
