"""How dead letters get into the tables. SQL on a connection that the caller commits; see `ackline.dlq.store`.

**Which row a dead letter is.** First by the redrive item that its header names: it is a row coming back. Else by
(message id, consumer, hash of the body). A header can lie where an old broker was deceived (`ackline.dlq.deadletter`),
so an item counts only if it was for this consumer and this body: then a lie gains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, bindparam, column, func, select, table, update

from ackline.dlq import arrivals, fingerprint, search_values
from ackline.dlq.arrivals import Arrival
from ackline.dlq.audit import REVIEWER
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.fingerprint import Fingerprint
from ackline.dlq.lifecycle import Known, arrived_again
from ackline.dlq.transition import Transitions, transitions
from ackline.infra.bulk import insert_rows
from ackline.infra.many import among
from ackline.infra.tables import DeadLetterState, ItemState, dead_letters, redrive_items
from ackline.infra.wire import now

Key = tuple[str, str, bytes]
_KEY = (dead_letters.c.message_id, dead_letters.c.consumer, dead_letters.c.body_sha256)
_BESIDE = ("flags", "redrive_count", "duplicates", "state", "received_at", "last_seen_at")
_OWN = tuple(
    column.name
    for column in dead_letters.c
    if column.name in DeadLetter.__dataclass_fields__ and column.name not in _BESIDE
)
#: The columns of a new row: those of the dead letter itself, and what it has beside.
_INSERTED = (*_OWN, "id", "fingerprint", *_BESIDE)
_values = attrgetter(*_OWN)
_KNOWN = tuple(dead_letters.c[name] for name in Known.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A dead letter, with what can be said of it before anybody waits for the database."""

    letter: DeadLetter
    fingerprint: Fingerprint

    @property
    def key(self) -> Key:
        """Which delivery it is."""
        return self.letter.message_id, self.letter.consumer, self.letter.body_sha256


def incoming(letter: DeadLetter) -> Incoming:
    """*letter*, ready to be taken in."""
    return Incoming(letter, fingerprint.of(letter))


def take(connection: Connection, dead: Sequence[Incoming], *, alerting: bool = False) -> None:
    """Store *dead*. alerting: whether somebody is to be told of failures that are new, or return.

    Raises IntegrityError when another reviewer stores one of them at the same moment: begin again.
    """
    at = now()
    returned = _rows_of_redrives(connection, dead)
    known = _rows_of_keys(connection, {found.letter.message_id for found in dead})
    fresh: dict[Key, Incoming] = {}
    again: list[tuple[int | None, Incoming]] = []
    for found in dead:
        row_id = returned.get((found.letter.sent_by, found.letter.consumer, found.letter.body_sha256))
        row_id = row_id or known.get(found.key)
        if row_id is None and found.key not in fresh:
            fresh[found.key] = found
        else:
            again.append((row_id, found))
    with transitions(connection) as moves:
        new = dict(zip(fresh, _new_ids(connection, len(fresh)), strict=True))
        _insert(connection, moves, fresh, new, at)
        search_values.add(connection, ((new[key], found.letter.payload) for key, found in fresh.items()))
        failed = _change(connection, moves, [(row_id or new[found.key], found) for row_id, found in again], at)
        stored = [(new[key], found) for key, found in fresh.items()] + failed
        arrivals.note(
            connection,
            [
                Arrival(found.fingerprint, row_id, found.letter.type, found.letter.received_at)
                for row_id, found in stored
            ],
            at,
            alerting=alerting,
        )


# --- those that are new -----------------------------------------------------------------------------------------------


def _new_ids(connection: Connection, count: int) -> list[int]:
    """Ids for *count* new rows, so that nobody has to ask the database for each afterwards."""
    if not count:
        return []
    if connection.dialect.name == "postgresql":
        sequence = func.pg_get_serial_sequence(dead_letters.name, dead_letters.c.id.name)
        return list(connection.scalars(select(func.nextval(sequence)).select_from(func.generate_series(1, count))))
    # AUTOINCREMENT counts here, and nobody else writes as long as this transaction does.
    sequences = table("sqlite_sequence", column("name"), column("seq"))
    last = connection.scalar(select(sequences.c.seq).where(sequences.c.name == dead_letters.name)) or 0
    return list(range(last + 1, last + 1 + count))


def _insert(
    connection: Connection, moves: Transitions, fresh: dict[Key, Incoming], ids: dict[Key, int], at: datetime
) -> None:
    if not fresh:
        return
    # Now, however long it has waited for the database: times follow ids (`ackline.dlq.selection`).
    beside: tuple[Any, ...] = ([], 0, 0, DeadLetterState.IN_REVIEW.value, at, at)
    rows = []
    for key, found in fresh.items():
        moves.count(found.fingerprint.id, DeadLetterState.IN_REVIEW, 1)
        rows.append((*_values(found.letter), ids[key], found.fingerprint.id, *beside))
    insert_rows(connection, dead_letters, _INSERTED, rows)


# --- those that are known ---------------------------------------------------------------------------------------------


def _rows_of_keys(connection: Connection, message_ids: Collection[str]) -> dict[Key, int]:
    """The ids of the rows of these messages, by key."""
    rows = connection.execute(select(dead_letters.c.id, *_KEY).where(among(_KEY[0], message_ids)))
    return {(message_id, consumer, bytes(digest)): row_id for row_id, message_id, consumer, digest in rows}


def _rows_of_redrives(connection: Connection, dead: Iterable[Incoming]) -> dict[tuple[str | None, str, bytes], int]:
    """The rows that the redrives named by *dead* sent, by (item, consumer it went to, hash of the body that went)."""
    names = {one.letter.sent_by for one in dead if one.letter.sent_by}
    if not names:
        return {}
    items = redrive_items.c
    # The hash is of what was sent, which may have been edited; of what was not there is none.
    query = (
        select(items.id, items.consumer, items.body_sha256, dead_letters.c.id)
        .join_from(redrive_items, dead_letters, items.dead_letter_id == dead_letters.c.id)
        .where(among(items.id, names), items.body_sha256.is_not(None))
    )
    rows = connection.execute(query)
    return {(item_id, consumer, bytes(digest)): row_id for item_id, consumer, digest, row_id in rows}


def _change(
    connection: Connection, moves: Transitions, again: list[tuple[int, Incoming]], at: datetime
) -> list[tuple[int, Incoming]]:
    """Carry out what each of *again* changes on the row with that id. Returns those that are in review again by it."""
    rows = _locked(connection, {row_id for row_id, _ in again})
    columns: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    failed: list[tuple[int, Incoming]] = []
    for row_id, found in again:
        row = rows[row_id]
        change = arrived_again(row, found.letter, found.fingerprint.id)
        columns[row_id] |= change.columns
        rows[row_id] = replace(row, **{name: value for name, value in change.columns.items() if hasattr(row, name)})
        if change.failed_item is not None:
            failed.append((row_id, found))
            moves.count(row.fingerprint, row.state, -1)
            moves.count(found.fingerprint.id, DeadLetterState.IN_REVIEW, 1)
    _update(connection, columns)
    _fail(connection, moves, failed, at)
    return failed


def _locked(connection: Connection, row_ids: Collection[int]) -> dict[int, Known]:
    """These rows, which nobody else changes now: in the order of their ids, so that nobody waits in a circle."""
    if not row_ids:
        return {}
    query = select(*_KNOWN).where(among(dead_letters.c.id, row_ids)).order_by(dead_letters.c.id).with_for_update()
    return {row.id: Known(*row) for row in connection.execute(query)}


def _update(connection: Connection, columns: dict[int, dict[str, Any]]) -> None:
    """Set these columns of each row: one statement for all rows that have the same ones to be set."""
    alike: defaultdict[frozenset[str], list[dict[str, Any]]] = defaultdict(list)
    for row_id, values in columns.items():
        alike[frozenset(values)].append(values | {"row_id": row_id})
    for rows in alike.values():
        connection.execute(update(dead_letters).where(dead_letters.c.id == bindparam("row_id")), rows)


def _fail(connection: Connection, moves: Transitions, failed: list[tuple[int, Incoming]], at: datetime) -> None:
    """Note of the redrives of these that they failed: one action for each kind of failure."""
    if not failed:
        return
    answers = [
        {"item": found.letter.sent_by, "error": found.letter.reason, "state": ItemState.FAILED, "finished_at": at}
        for _, found in failed
    ]
    connection.execute(update(redrive_items).where(redrive_items.c.id == bindparam("item")), answers)
    kinds: defaultdict[Fingerprint, list[int]] = defaultdict(list)
    for row_id, found in failed:
        kinds[found.fingerprint].append(row_id)
    before, after = DeadLetterState.REDRIVING, DeadLetterState.IN_REVIEW
    for kind, row_ids in kinds.items():
        said = ": ".join(filter(None, (kind.error_type, kind.message)))
        moves.record(REVIEWER, "failed again", said, row_ids, before, after, {"fingerprint": kind.id})
