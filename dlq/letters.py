"""Dead letters as people work with them: found, read, noted on, discarded and restored.

Every method is one transaction, is safe on any thread, and raises `DatabaseUnavailable` when the database is away: then
nothing of it happened. *who* is the person that acts; `Forbidden` says that the role does not allow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from ackline.dlq.deadletter import clean
from ackline.dlq.errors import AmbiguousMessageId, NoSuchDeadLetter, Refused
from ackline.dlq.rights import Actor, Right
from ackline.dlq.selection import Selection, counts, rows
from ackline.dlq.transition import transitions
from ackline.dlq.view import PREVIEW, Action, Detail, Page, Summary
from ackline.infra.database import reading, writing
from ackline.infra.tables import DeadLetterState, action_items, actions, dead_letters
from ackline.infra.wire import now


@dataclass(frozen=True, slots=True)
class Done:
    """What was done: to how many dead letters."""

    count: int


def _columns(kind: type[Summary]) -> list[Any]:
    return [
        dead_letters.c[field] for field in kind.__dataclass_fields__ if field in dead_letters.c and field != "payload"
    ]


class Letters:
    """Dead letters in the database behind *engine*, whose tables are up to date."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, who: Actor, selection: Selection, after: int | None = None, limit: int = 50) -> Page:
        """Up to *limit* dead letters of *selection*, latest first. after: `next` of the page before this one."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            found = rows(connection, selection, after=after, limit=limit)
            query = select(*_columns(Summary)).where(dead_letters.c.id.in_(found.ids))
            summaries = connection.execute(query.order_by(dead_letters.c.id.desc()))
            return Page([Summary(**row._mapping) for row in summaries], found.next, found.scanned)

    def counts(self, who: Actor, selection: Selection) -> dict[str, int]:
        """How many dead letters of *selection* are in each state; every state is there."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            found = counts(connection, selection)
        return {state.value: found.get(state.value, 0) for state in DeadLetterState}

    def get(self, who: Actor, dead_letter_id: int) -> Detail:
        """All of one dead letter. Raises `NoSuchDeadLetter`."""
        who.must(Right.VIEW)
        payload = dead_letters.c.payload
        query = select(
            *_columns(Detail),
            func.substr(payload, 1, PREVIEW, type_=payload.type).label("payload"),
            func.length(payload).label("payload_size"),
        ).where(dead_letters.c.id == dead_letter_id)
        columns = dict(actions.c) | dict(action_items.c)
        done = select(*[columns[field] for field in Action.__dataclass_fields__]).join_from(actions, action_items)
        done = done.where(action_items.c.dead_letter_id == dead_letter_id).order_by(actions.c.id)
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
            return Detail(**row._mapping, actions=[Action(**found._mapping) for found in connection.execute(done)])

    def payload(self, who: Actor, dead_letter_id: int) -> bytes:
        """The whole payload as it came. Raises `NoSuchDeadLetter`."""
        who.must(Right.VIEW)
        with reading(self._engine) as connection:
            query = select(dead_letters.c.payload).where(dead_letters.c.id == dead_letter_id)
            found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
        return bytes(found)

    def find(self, who: Actor, reference: str) -> Summary:
        """The dead letter that *reference* names: a number is an id, all else a message id.

        Raises `NoSuchDeadLetter`, `AmbiguousMessageId`.
        """
        who.must(Right.VIEW)
        if reference.isascii() and reference.isdigit() and len(reference) < 19:
            wanted = dead_letters.c.id == int(reference)
        else:
            wanted = dead_letters.c.message_id == clean(reference)
        query = select(*_columns(Summary)).where(wanted)
        with reading(self._engine) as connection:
            found = connection.execute(query.order_by(dead_letters.c.id).limit(10)).all()
        if not found:
            raise NoSuchDeadLetter(f"There is no dead letter {reference!r}; `ackline dlq list` shows what there is.")
        if len(found) > 1:
            ids = ", ".join(f"{row.id} ({row.consumer or 'no consumer'}, {row.state})" for row in found)
            raise AmbiguousMessageId(
                f"Several dead letters have the message id {reference!r}: {ids}. Name one by its id."
            )
        return Summary(**found[0]._mapping)

    def discard(self, who: Actor, dead_letter_id: int, reason: str) -> Done:
        """Take a dead letter out of review for good, for *reason*. It is kept, with who did it and why.

        Raises `Refused` unless it is in review and *reason* says something, `NoSuchDeadLetter`.
        """
        who.must(Right.DISCARD)
        reason = clean(reason.strip())
        if not reason:
            raise Refused("A dead letter is discarded for a reason: say which.")
        before, after = DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED
        columns = {"discarded_at": now(), "discarded_by": who.name, "discard_reason": reason}
        with writing(self._engine) as connection, transitions(connection) as moves:
            if not moves.move([dead_letter_id], before, after, **columns):
                raise Refused(
                    f"Dead letter {dead_letter_id} cannot be discarded: it is {_state(connection, dead_letter_id)}."
                )
            moves.record(who.name, "discard", reason, [dead_letter_id], before, after)
        return Done(1)


def _state(connection: Connection, dead_letter_id: int) -> str:
    state = connection.execute(
        select(dead_letters.c.state).where(dead_letters.c.id == dead_letter_id)
    ).scalar_one_or_none()
    if state is None:
        raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
    return str(state)
