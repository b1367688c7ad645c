"""The outbox for Django services: messages as rows in the transaction of Django's own connection.

```python
from ackline.producer import django as outbox

with transaction.atomic():
    order.save()
    outbox.add(OrderPlaced(order_id=order.id))
```

Needs no SQLAlchemy, and no entry in `INSTALLED_APPS`; a migration of the service makes the tables by `create_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import connections
from pydantic import BaseModel

from ackline.infra.errors import AcklineError
from ackline.infra.wire import now
from ackline.producer.envelope import Entry, enclose

__all__ = ["OutsideTransaction", "UnknownDatabase", "add", "create_tables", "put"]

_INSERT = (
    "INSERT INTO ackline_outbox (message_id, type, properties, payload, created_at, due_at, state) "
    "VALUES (%s, %s, %s, %s, %s, %s, 'waiting')"
)
#: The tables of `ackline.infra.tables`, to the letter; a test compares them.
_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS ackline_outbox (
        id {id},
        message_id TEXT NOT NULL,
        type TEXT NOT NULL,
        properties {bytes} NOT NULL,
        payload {bytes} NOT NULL,
        created_at {time} NOT NULL,
        due_at {time},
        state TEXT NOT NULL,
        error TEXT,
        finished_at {time},
        {key}
        CONSTRAINT ck_ackline_outbox_state CHECK (state IN ('waiting', 'published', 'cancelled', 'failed')),
        CONSTRAINT ck_ackline_outbox_finished CHECK ((state = 'waiting') = (finished_at IS NULL))
    )
    """,
    "CREATE INDEX IF NOT EXISTS ix_ackline_outbox_message_id ON ackline_outbox (message_id)",
    "CREATE INDEX IF NOT EXISTS ix_ackline_outbox_finished_at ON ackline_outbox (finished_at)",
    "CREATE INDEX IF NOT EXISTS ix_ackline_outbox_waiting ON ackline_outbox (due_at, id) WHERE state IN ('waiting')",
    """
    CREATE TABLE IF NOT EXISTS ackline_leases (
        name TEXT NOT NULL,
        holder TEXT NOT NULL,
        expires_at {time} NOT NULL,
        CONSTRAINT pk_ackline_leases PRIMARY KEY (name)
    )
    """,
)
_KINDS = {
    "sqlite": {
        "id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
        "key": "",
        "bytes": "BLOB",
        "time": "DATETIME",
    },
    "postgresql": {
        "id": "BIGSERIAL NOT NULL",
        "key": "CONSTRAINT pk_ackline_outbox PRIMARY KEY (id),",
        "bytes": "BYTEA",
        "time": "TIMESTAMP WITH TIME ZONE",
    },
}


class OutsideTransaction(AcklineError):
    """There is no transaction that the message could share the fate of."""


class UnknownDatabase(AcklineError):
    """The database is neither PostgreSQL nor SQLite."""


def add(
    instance: BaseModel,
    *,
    using: str = "default",
    message_id: str | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, Any] | None = None,
    track: bool | None = None,
    delay: timedelta | float | None = None,
    deliver_at: datetime | None = None,
    app_id: str | None = None,
    autocommit: bool = False,
) -> str:
    """Have *instance* published when the transaction of the connection *using* is committed, and only then.

    Returns its message id. autocommit: take it outside of a transaction too, committed at once by itself. The other
    parameters, and what is guaranteed and raised: as of `ackline.producer.outbox.add`. Raises `OutsideTransaction`.
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
    put(entry, using=using, autocommit=autocommit)
    return entry.message_id


def put(entry: Entry, *, using: str = "default", autocommit: bool = False) -> None:
    """Have what is enclosed already published: see `add`. Raises `OutsideTransaction`."""
    kind = _kind(using, autocommit)
    values = (
        entry.message_id,
        entry.type,
        entry.properties.wire,
        entry.payload,
        _time(kind, now()),
        _time(kind, entry.due_at),
    )
    with connections[using].cursor() as cursor:
        cursor.execute(_INSERT, values)


def create_tables(using: str = "default") -> None:
    """Create the tables of an outbox where they are missing, on Django's connection *using*.

    In a migration: `RunPython(lambda apps, editor: outbox.create_tables(editor.connection.alias))`.
    """
    kinds = _KINDS[_kind(using, autocommit=True)]
    with connections[using].cursor() as cursor:
        for statement in _TABLES:
            cursor.execute(statement.format_map(kinds))


def _kind(using: str, autocommit: bool) -> str:
    """The kind of the database, which can have an outbox, and now a row in it."""
    connection = connections[using]
    kind: str = connection.vendor
    if kind not in _KINDS:
        raise UnknownDatabase(f"An outbox needs PostgreSQL or SQLite; {connection.alias!r} is {kind}.")
    if not (autocommit or connection.in_atomic_block):
        raise OutsideTransaction(
            f"A message is added in the transaction that it tells about, and {using!r} is in none: "
            "use transaction.atomic(), or say autocommit=True."
        )
    return kind


def _time(kind: str, at: datetime | None) -> datetime | str | None:
    """A time in UTC as the relay reads it: SQLite has texts for times, and they are compared as texts."""
    return at.strftime("%Y-%m-%d %H:%M:%S.%f") if at is not None and kind == "sqlite" else at
