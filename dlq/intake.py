"""How dead letters get into the tables. SQL on a connection that the caller commits; see `ackline.dlq.store`.

**Which row a dead letter is.** First by the redrive item that its header names: it is a row coming back. Else by
(message id, consumer, hash of the body). A header can lie where an old broker was deceived (`ackline.dlq.deadletter`),
so an item counts only if it was for this consumer and this body: then a lie gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from ackline.dlq.audit import REVIEWER
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.lifecycle import Known, arrived_again
from ackline.dlq.transition import Transitions, transitions
from ackline.infra.tables import DeadLetterState, ItemState, dead_letters, redrive_items
from ackline.infra.wire import now

#: Names in one `IN (...)`; both databases take many more.
_CHUNK = 500

Key = tuple[str, str, bytes]
_KEY = (dead_letters.c.message_id, dead_letters.c.consumer, dead_letters.c.body_sha256)
#: What a new row has beside the dead letter itself.
_NEW: dict[str, Any] = {"state": DeadLetterState.IN_REVIEW, "redrive_count": 0, "duplicates": 0, "flags": []}
_COLUMNS = tuple(column.name for column in dead_letters.c if column.name in DeadLetter.__dataclass_fields__)
_KNOWN = tuple(dead_letters.c[name] for name in Known.__dataclass_fields__)


def take(connection: Connection, dead: Sequence[DeadLetter]) -> None:
    """Store *dead*: new rows at once, those that are known already one by one.

    Raises IntegrityError when another reviewer stores one of them at the same moment: begin again.
    """
    returned = _rows_of_redrives(connection, dead)
    known = _rows_of_keys(connection, [letter.message_id for letter in dead])
    fresh: dict[Key, DeadLetter] = {}
    again: list[tuple[int | None, DeadLetter]] = []
    for letter in dead:
        row_id = returned.get((letter.sent_by, letter.consumer, letter.body_sha256)) or known.get(_key(letter))
        if row_id is None and _key(letter) not in fresh:
            fresh[_key(letter)] = letter
        else:
            again.append((row_id, letter))
    with transitions(connection) as moves:
        _insert(connection, list(fresh.values()))
        found = [(row_id or _id_of(connection, letter), letter) for row_id, letter in again]
        # In the order of the ids, so that two reviewers never wait for each other's rows in a circle.
        for row_id, letter in sorted(found, key=lambda pair: pair[0]):
            _change(connection, moves, row_id, letter)


def _insert(connection: Connection, dead: Sequence[DeadLetter]) -> None:
    # A plain executemany: psycopg sends it as one pipeline, 1.6 times as fast as INSERTs of many rows with RETURNING.
    if dead:
        values = [
            {name: getattr(letter, name) for name in _COLUMNS} | _NEW | {"last_seen_at": letter.received_at}
            for letter in dead
        ]
        connection.execute(insert(dead_letters), values)


def _rows_of_keys(connection: Connection, message_ids: Sequence[str]) -> dict[Key, int]:
    """The ids of the rows of these messages, by key."""
    found: dict[Key, int] = {}
    for start in range(0, len(message_ids), _CHUNK):
        query = select(dead_letters.c.id, *_KEY).where(
            dead_letters.c.message_id.in_(message_ids[start : start + _CHUNK])
        )
        for row_id, message_id, consumer, digest in connection.execute(query):
            found[message_id, consumer, bytes(digest)] = row_id
    return found


def _rows_of_redrives(connection: Connection, dead: Iterable[DeadLetter]) -> dict[tuple[str | None, str, bytes], int]:
    """The ids of the rows that the redrives named by *dead* sent, by (item, consumer it was for, body's hash)."""
    names = sorted({letter.sent_by for letter in dead if letter.sent_by})
    found: dict[tuple[str | None, str, bytes], int] = {}
    for start in range(0, len(names), _CHUNK):
        query = (
            select(redrive_items.c.id, redrive_items.c.consumer, dead_letters.c.body_sha256, dead_letters.c.id)
            .join_from(redrive_items, dead_letters, redrive_items.c.dead_letter_id == dead_letters.c.id)
            .where(redrive_items.c.id.in_(names[start : start + _CHUNK]))
        )
        for item_id, consumer, digest, row_id in connection.execute(query):
            found[item_id, consumer, bytes(digest)] = row_id
    return found


def _key(letter: DeadLetter) -> Key:
    return letter.message_id, letter.consumer, letter.body_sha256


def _id_of(connection: Connection, letter: DeadLetter) -> int:
    query = select(dead_letters.c.id).where(
        *(column == value for column, value in zip(_KEY, _key(letter), strict=True))
    )
    found: int = connection.execute(query).scalar_one()
    return found


def _change(connection: Connection, moves: Transitions, row_id: int, letter: DeadLetter) -> None:
    """Carry out what *letter* changes on a row that is there already."""
    found = connection.execute(select(*_KNOWN).where(dead_letters.c.id == row_id).with_for_update()).one()
    row = Known(*found)
    change = arrived_again(row, letter)
    changed = connection.execute(
        update(dead_letters)
        .where(dead_letters.c.id == row_id, dead_letters.c.state == row.state)
        .values(**change.columns)
    )
    if changed.rowcount != 1:
        raise RuntimeError(f"dead letter {row_id} was {row.state!r} under our lock and is not any more")
    if change.failed_item is not None:
        connection.execute(
            update(redrive_items)
            .where(redrive_items.c.id == change.failed_item)
            .values(state=ItemState.FAILED, finished_at=now(), error=letter.reason)
        )
        before, after = DeadLetterState(row.state), DeadLetterState.IN_REVIEW
        moves.record(REVIEWER, "failed again", letter.reason, [row_id], before, after)
