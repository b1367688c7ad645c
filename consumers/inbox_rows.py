"""The rows of an inbox: one for each message that a consumer has handled, or is handling under a claim.

```
             take, in the transaction of the effect             no row until it commits
   no row ───────────────────────────────────────────► handled ──► deleted after `keep_until`
     ▲ │                                                  ▲
     │ │ take, with an expiry                             │
     │ └────────────────────────► claimed ─── finish ─────┘
     │                             │   ▲ │
     └────────── forget ───────────┘   └─┘ take, after the expiry
```

A statement that writes a row waits, on PostgreSQL, for a transaction that writes the same one, and then sees what that
did; on SQLite one transaction writes at a time. So of two workers with one message, the second learns what the first
has come to.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from ackline.infra.database import clock
from ackline.infra.properties import Properties
from ackline.infra.tables import inbox
from ackline.infra.wire import now

#: What a handler published: the type, the properties and the body of each.
Enlisted = list[tuple[str, Properties, bytes]]


class Key(NamedTuple):
    """Whose row it is."""

    consumer: str
    message_id: str


class Row(NamedTuple):
    """What is known of a message that was taken before.

    claimed_until: until then somebody handles it; None when it is handled. unconfirmed: what its handler published and
    the broker may not have; None when there is nothing.
    """

    body_sha256: bytes
    claimed_until: datetime | None
    unconfirmed: Enlisted | None


def _take(insert: Any) -> Any:
    statement = insert(inbox)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[inbox.c.consumer, inbox.c.message_id],
        set_={name: new[name] for name in ("body_sha256", "claimed_until", "changed_at", "keep_until")},
        where=inbox.c.claimed_until <= new["changed_at"],
    ).returning(inbox.c.consumer, inbox.c.message_id)


_TAKE = {"sqlite": _take(sqlite.insert), "postgresql": _take(postgresql.insert)}
_KEY = tuple_(inbox.c.consumer, inbox.c.message_id)


def take(
    connection: Connection, digests: Mapping[Key, bytes], *, keep: timedelta, expires: timedelta | None
) -> tuple[datetime | None, dict[Key, Row]]:
    """Write down that these messages are handled when this transaction commits; or, with *expires*, that they are
    claimed for so long. digests: SHA-256 of their bodies.

    Returns until when they are claimed, which no later claim of one of them shares, and the rows of those that were
    taken before: these are not ours.
    """
    at = now() if expires is None else clock(connection)
    until = None if expires is None else at + expires
    left = sorted(digests)  # in one order everywhere, or two batches could wait for each other
    there: dict[Key, Row] = {}
    while left:
        rows = [
            {
                "consumer": key.consumer,
                "message_id": key.message_id,
                "body_sha256": digests[key],
                "claimed_until": until,
                "changed_at": at,
                "keep_until": at + keep,
            }
            for key in left
        ]
        taken = {Key(*row) for row in connection.execute(_TAKE[connection.dialect.name], rows)}
        left = [key for key in left if key not in taken]
        if left:
            there |= _found(connection, left)
            left = [key for key in left if key not in there]  # released in between
    return until, there


def _found(connection: Connection, keys: Sequence[Key]) -> dict[Key, Row]:
    columns = (inbox.c.consumer, inbox.c.message_id, inbox.c.body_sha256, inbox.c.claimed_until, inbox.c.unconfirmed)
    return {
        Key(consumer, message_id): Row(body_sha256, until, None if unconfirmed is None else _unpacked(unconfirmed))
        for consumer, message_id, body_sha256, until, unconfirmed in connection.execute(
            select(*columns).where(_KEY.in_(keys))
        )
    }


def note_unconfirmed(connection: Connection, key: Key, enlisted: Enlisted) -> None:
    """Keep what the handler published, until `confirmed`."""
    connection.execute(update(inbox).where(_is(key)).values(unconfirmed=_packed(enlisted)))


def confirmed(connection: Connection, keys: Sequence[Key]) -> None:
    """The broker has all that the handlers of these messages published."""
    connection.execute(update(inbox).where(_KEY.in_(keys)).values(unconfirmed=None))


def finish(connection: Connection, key: Key, enlisted: Enlisted | None) -> None:
    """What was claimed is handled, whoever has the claim by now."""
    handled = update(inbox).where(_is(key), inbox.c.claimed_until.is_not(None))
    unconfirmed = None if enlisted is None else _packed(enlisted)
    connection.execute(handled.values(claimed_until=None, changed_at=now(), unconfirmed=unconfirmed))


def forget(connection: Connection, keys: Sequence[Key], claimed_until: datetime | None = None) -> None:
    """These messages were not handled after all. claimed_until: only where the claim that ends then still is."""
    if keys:
        theirs = delete(inbox).where(_KEY.in_(keys))
        if claimed_until is not None:
            theirs = theirs.where(inbox.c.claimed_until == claimed_until)
        connection.execute(theirs)


def delete_old(connection: Connection, limit: int) -> int:
    """Delete rows that need not be kept any longer, *limit* at most. Returns how many."""
    old = select(inbox.c.consumer, inbox.c.message_id).where(inbox.c.keep_until < now()).limit(limit)
    return connection.execute(delete(inbox).where(_KEY.in_(old))).rowcount


def _is(key: Key) -> Any:
    return and_(inbox.c.consumer == key.consumer, inbox.c.message_id == key.message_id)


def _packed(enlisted: Enlisted) -> list[dict[str, str]]:
    return [
        {"type": type_, "properties": base64.b64encode(properties.wire).decode(), "payload": body.decode()}
        for type_, properties, body in enlisted
    ]


def _unpacked(unconfirmed: list[dict[str, str]]) -> Enlisted:
    return [
        (each["type"], Properties.from_wire(base64.b64decode(each["properties"])), each["payload"].encode())
        for each in unconfirmed
    ]
