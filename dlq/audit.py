"""What was done, by whom, when, why and to which dead letters: a chain that is only ever added to; see `dlq.chain`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    CursorResult,
    Engine,
    LargeBinary,
    Row,
    Select,
    Text,
    cast,
    func,
    insert,
    select,
)

from ackline.dlq.chain import BEGINNING, DAMAGE, Broken, Head, Item, Recorded, Verdict, chained, compact, line, verified
from ackline.dlq.deadletter import clean
from ackline.dlq.errors import Fault, Invalid, NotFound
from ackline.dlq.rights import Actor, Right
from ackline.infra.bulk import insert_rows
from ackline.infra.database import reading
from ackline.infra.tables import action_items, actions
from ackline.infra.wire import now

#: The actor of what no person did.
REVIEWER = "ackline reviewer"
#: PostgreSQL advisory lock of whoever adds to the chain; any number that nobody else uses.
_CHAIN_LOCK = 0x61636B6C636861
#: Rows that are fetched at a time where all are read.
_FETCHED = 500
#: How SQLite writes a time.
_SQLITE_TIME = "%Y-%m-%d %H:%M:%S.%f"


class Entry(NamedTuple):
    """An action to be: on (dead letter, state before, state after) each. details: what fits into JSON."""

    actor: Actor | str
    action: str
    reason: str
    items: Sequence[Item] = ()
    details: Mapping[str, Any] | None = None


def append(connection: Connection, entries: Iterable[Entry]) -> int:
    """Add *entries* to the chain, in the caller's transaction; returns the number of the last.

    Until that ends, everybody else who adds waits: call it last in the transaction.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_CHAIN_LOCK)))
    last = connection.execute(select(actions.c.id, actions.c.hash).order_by(actions.c.id.desc()).limit(1)).one_or_none()
    number, before = (last.id, bytes(last.hash)) if last else (0, BEGINNING)
    rows, items = [], []
    at = now()
    for entry in entries:
        number += 1
        actor, more = (entry.actor.name, entry.actor.told) if isinstance(entry.actor, Actor) else (entry.actor, {})
        told: dict[str, Any] = {
            "actor": clean(actor),
            "action": entry.action,
            "reason": clean(entry.reason),
            "details": _as_read({**(entry.details or {}), **more}),
        }
        met = sorted(entry.items)
        before = chained(before, number, at, **told, items=met)
        rows.append({"id": number, "at": at, **told, "count": len(met), "hash": before})
        items += [(number, *one) for one in met]
    if rows:
        connection.execute(insert(actions), rows)
    if items:
        insert_rows(connection, action_items, ("action_id", "dead_letter_id", "state_before", "state_after"), items)
    return number


def _as_read(details: Mapping[str, Any]) -> dict[str, Any]:
    """*details* as whoever reads them back has them: names are texts first, and in order then."""
    read: dict[str, Any] = json.loads(compact(json.loads(json.dumps(details, allow_nan=False))))
    return read


def unmasked(connection: Connection, who: Actor, dead_letter_id: int, state: str, reason: str) -> None:
    """Put it on record that *who* sees the secrets of a dead letter, and why; last in the caller's transaction.

    Raises `Forbidden`, and `Invalid` when no reason is given.
    """
    who.must(Right.UNMASK)
    append(connection, [Entry(who, "unmask", given(reason), [(dead_letter_id, state, state)])])


def given(reason: str) -> str:
    """*reason*, fit for any database; it must say something. Raises `Invalid`."""
    reason = clean(reason).strip()
    if not reason:
        fault = "It is kept on record why this is done: give a reason."
        raise Invalid(fault, [Fault("reason", fault)])
    return reason


@dataclass(frozen=True, slots=True)
class Action:
    """An action, as it is listed. dead_letter: the one that it was about, or the first of `count`."""

    id: int
    at: datetime
    actor: str
    action: str
    reason: str
    details: dict[str, Any]
    count: int
    dead_letter: int | None
    hash: bytes


class ActionPage(NamedTuple):
    """Some actions, the latest first. next: where the page after begins; None when there is none."""

    items: list[Action]
    next: int | None


class Audit:
    """What was done, in the database behind *engine*. All of it asks for the right to read it (`Forbidden`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        who: Actor,
        *,
        actor: str | None = None,
        action: str | None = None,
        dead_letter: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> ActionPage:
        """Actions of this actor, of this kind, on this dead letter, from *since* on and before *until*.

        after: `next` of the page before.
        """
        who.must(Right.READ_AUDIT)
        mine = action_items.c.action_id == actions.c.id
        first = select(func.min(action_items.c.dead_letter_id)).where(mine).scalar_subquery().label("dead_letter")
        query = select(actions, first).order_by(actions.c.id.desc()).limit(limit + 1)
        if actor is not None:
            query = query.where(actions.c.actor == clean(actor))
        if action is not None:
            query = query.where(actions.c.action == clean(action))
        if dead_letter is not None:
            about = select(action_items.c.action_id).where(action_items.c.dead_letter_id == dead_letter)
            query = query.where(actions.c.id.in_(about))
        if since is not None:
            query = query.where(actions.c.at >= since)
        if until is not None:
            query = query.where(actions.c.at < until)
        if after is not None:
            query = query.where(actions.c.id < after)
        with reading(self._engine) as connection:
            found = [Action(**row._mapping) for row in connection.execute(query)]
        return ActionPage(found[:limit], found[limit - 1].id if len(found) > limit else None)

    def items(self, who: Actor, action_id: int, after: int = 0, limit: int = 1000) -> list[Item]:
        """The dead letters of an action, in the order of their ids, those behind *after*. Raises `NotFound`."""
        who.must(Right.READ_AUDIT)
        query = select(*action_items.c["dead_letter_id", "state_before", "state_after"])
        query = query.where(action_items.c.action_id == action_id, action_items.c.dead_letter_id > after)
        with reading(self._engine) as connection:
            if connection.execute(select(actions.c.id).where(actions.c.id == action_id)).one_or_none() is None:
                raise NotFound(f"There is no action {action_id}.")
            return [
                tuple(row) for row in connection.execute(query.order_by(action_items.c.dead_letter_id).limit(limit))
            ]

    def export(self, who: Actor, after: int = 0) -> Iterator[str]:
        """All actions behind *after* as lines of JSON, each of which `verify_lines` can follow to the next.

        Raises `Invalid`, as of the first line, where an action is no action any more: then `verify` says which.
        """
        who.must(Right.READ_AUDIT)
        return self._lines(after)

    def _lines(self, after: int) -> Iterator[str]:
        with reading(self._engine) as connection:
            previous = BEGINNING
            if after:
                query = select(actions.c.hash).where(actions.c.id == after)
                found = connection.execute(query).scalar_one_or_none()
                if found is None:
                    raise NotFound(f"There is no action {after}.")
                previous = bytes(found)
            with closing(_recorded(connection, after, _head(connection))) as recorded:
                for action in recorded:
                    try:
                        written = line(action, previous) if action else None
                    except DAMAGE:
                        written = None
                    if action is None or written is None:
                        raise Invalid("The chain of actions is damaged: `ackline audit verify` says where.")
                    yield written
                    previous = action.hash

    def verify(self, who: Actor, expect: Head | None = None) -> Verdict:
        """Whether all actions are as they were written. expect: an end that `verify` told once, and somebody noted.

        In one pass and in bounded memory. What is added meanwhile is not looked at.
        """
        who.must(Right.READ_AUDIT)
        with reading(self._engine) as connection:
            with closing(_recorded(connection, 0, _head(connection))) as recorded:
                verdict = verified(recorded, expect=expect)
            if verdict.broken is None and (stray := _stray(connection)) is not None:
                said = f"There are dead letters of an action {stray}, but no such action: it was removed."
                return Verdict(verdict.count, verdict.head, Broken(stray, "stray", said))
            return verdict


# --- reading what may be damaged --------------------------------------------------------------------------------------


def _head(connection: Connection) -> int:
    return connection.execute(select(func.max(actions.c.id))).scalar_one() or 0


def _stray(connection: Connection) -> int | None:
    """An action that has dead letters and is not there."""
    query = select(action_items.c.action_id).outerjoin(actions, actions.c.id == action_items.c.action_id)
    query = query.where(actions.c.id.is_(None)).limit(1)
    return connection.execute(query).scalar_one_or_none()


def _recorded(connection: Connection, after: int, head: int) -> Generator[Recorded | None]:
    """The actions behind *after* up to *head*, each with its items, which are to be read before the next one.

    None stands for a row that `append` cannot have written, byte for byte.
    """
    raw = _RAW[connection.dialect.name]
    query = select(
        *actions.c["id", "count"],
        *(raw(actions.c[name]) for name in ("at", "actor", "action", "reason", "details", "hash")),
    )
    items = select(
        *action_items.c["action_id", "dead_letter_id"],
        *(raw(action_items.c[name]) for name in ("state_before", "state_after")),
    ).order_by(action_items.c.action_id, action_items.c.dead_letter_id)
    items = items.where(action_items.c.action_id.between(after + 1, head))
    query = query.where(actions.c.id > after, actions.c.id <= head).order_by(actions.c.id)
    with _streamed(connection, items) as met, _streamed(connection, query) as rows:
        groups = itertools.groupby(met, key=lambda row: row.action_id)
        group = next(groups, None)
        for row in rows:
            try:
                while group is not None and group[0] < row.id:  # of no action: see `_stray`
                    group = next(groups, None)
                mine = group[1] if group is not None and group[0] == row.id else ()
                action = _action(row, map(_item, mine))
            except DAMAGE:
                action = None
            yield action


def _streamed(connection: Connection, query: Select[Any]) -> CursorResult[Any]:
    return connection.execute(query, execution_options={"yield_per": _FETCHED})


#: How a column is read as it is, whatever is in it. SQLite's driver would refuse a text that is no UTF-8, and take
#: "2026-01-01x12:30" for a time; and of JSON either driver would give what it says, not how it is written.
_RAW: dict[str, Callable[[Column[Any]], Any]] = {
    "sqlite": lambda column: cast(column, LargeBinary).label(column.name),
    "postgresql": lambda column: (cast(column, Text) if column is actions.c.details else column).label(column.name),
}


def _action(row: Row[Any], items: Iterable[Item]) -> Recorded:
    """Raises one of `DAMAGE` unless `append` can have written *row*."""
    told = _text(row.details)
    details = json.loads(told)
    if json.dumps(details, sort_keys=True) != told:
        raise ValueError(told)
    return Recorded(
        row.id,
        _time(row.at),
        _text(row.actor),
        _text(row.action),
        _text(row.reason),
        details,
        row._mapping["count"],  # a row has a method of that name
        row.hash,
        items,
    )


def _item(row: Row[Any]) -> Item:
    return row.dead_letter_id, _text(row.state_before), _text(row.state_after)


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()


def _time(raw: datetime | bytes) -> datetime:
    if isinstance(raw, datetime):
        return raw
    at = datetime.strptime(raw.decode(), _SQLITE_TIME).replace(tzinfo=UTC)
    if at.strftime(_SQLITE_TIME).encode() != raw:
        raise ValueError(raw)
    return at
