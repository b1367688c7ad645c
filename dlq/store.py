"""The store of dead letters: what the reviewer, the command line and the desk read and change, in transactions.

Every method is one transaction, is safe on any thread, and raises `DatabaseUnavailable` when the database is away: then
nothing of it happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ackline.dlq import intake, redrive, tracking
from ackline.dlq.deadletter import DeadLetter, clean
from ackline.dlq.errors import AmbiguousMessageId, NoSuchDeadLetter, Refused
from ackline.dlq.outcome import Outcome
from ackline.dlq.redrive import Claim, Consumers, Requested
from ackline.dlq.transition import transitions
from ackline.dlq.view import PREVIEW, Action, Detail, Item, Summary, Unstored
from ackline.infra.database import is_outage, reading, writing
from ackline.infra.tables import DeadLetterState, action_items, actions, dead_letters, redrive_items
from ackline.infra.wire import now


def _columns(kind: type[Summary]) -> list[Any]:
    return [
        dead_letters.c[field] for field in kind.__dataclass_fields__ if field in dead_letters.c and field != "payload"
    ]


class Store:
    """Dead letters in the database behind *engine*, whose tables are up to date."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- the reviewer ----------------------------------------------------------------------------------

    def ingest(self, dead: Sequence[DeadLetter]) -> list[Unstored]:
        """Store *dead* in one transaction; when it returns, all of them are on disk but those that it returns.

        One that the database does not take costs the batch its speed and nothing else: it is stored row by row then.
        """
        try:
            with writing(self._engine) as connection:
                intake.take(connection, dead)
            return []
        except (SQLAlchemyError, ValueError):
            # ValueError: what a driver says of a text that it cannot encode.
            return self._ingest_one_by_one(dead)

    def _ingest_one_by_one(self, dead: Sequence[DeadLetter]) -> list[Unstored]:
        unstored = []
        with writing(self._engine) as connection:
            for index, letter in enumerate(dead):
                try:
                    with connection.begin_nested():
                        intake.take(connection, [letter])
                except (SQLAlchemyError, ValueError) as error:
                    if isinstance(error, DBAPIError) and is_outage(error):
                        raise
                    # The first line: the others of PostgreSQL's hold the row itself, which is not for a log.
                    said = str(getattr(error, "orig", error)).splitlines() or [type(error).__name__]
                    unstored.append(Unstored(index, said[0][:300]))
        return unstored

    def outcomes(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Note what workers report, in one transaction. Returns those that tell nothing: they answer no redrive of
        ours, or the database does not take them.
        """
        try:
            with writing(self._engine) as connection:
                return self._note(connection, outcomes)
        except (SQLAlchemyError, ValueError):
            return self._note_one_by_one(outcomes)

    def _note_one_by_one(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        strange = []
        with writing(self._engine) as connection:
            for outcome in outcomes:
                try:
                    with connection.begin_nested():
                        strange += self._note(connection, [outcome])
                except (SQLAlchemyError, ValueError) as error:
                    if isinstance(error, DBAPIError) and is_outage(error):
                        raise
                    strange.append(outcome)
        return strange

    def _note(self, connection: Connection, outcomes: Sequence[Outcome]) -> list[Outcome]:
        tracking.fold(connection, outcomes)
        answers = [outcome for outcome in outcomes if outcome.answers_redrive]
        if not answers:
            return []
        with transitions(connection) as moves:
            return redrive.succeeded(connection, moves, answers)

    def forget_deliveries(self, before: datetime, limit: int) -> int:
        """Delete up to *limit* rows of tracked deliveries that have not changed since *before*. Returns how many."""
        with reading(self._engine) as connection:  # mostly there are none, and then nobody has to wait for a writer
            if not tracking.has_old(connection, before):
                return 0
        with writing(self._engine) as connection:
            return tracking.forget(connection, before, limit)

    def claim(self, limit: int, seconds: float) -> list[Claim]:
        """Up to *limit* redrive items to publish now, marked as issued; nobody else gets them for *seconds*."""
        with reading(self._engine) as connection:
            if not redrive.is_waiting(connection):
                return []
        with writing(self._engine) as connection, transitions(connection) as moves:
            return redrive.claim(connection, moves, limit, seconds)

    def settle(self, sent: Sequence[str], put_off: dict[str, str], not_sent: dict[str, str], again_in: float) -> None:
        """Note what became of claimed items, by id: confirmed by the broker; to be published again *again_in* seconds
        from now, and why; impossible to send, and why."""
        with writing(self._engine) as connection, transitions(connection) as moves:
            redrive.confirmed(connection, sent)
            for item_id, why in put_off.items():
                redrive.put_off(connection, item_id, why, again_in)
            for item_id, why in not_sent.items():
                redrive.not_sent(connection, moves, item_id, why)

    # --- operators -------------------------------------------------------------------------------------

    def page(
        self,
        *,
        states: Sequence[str] = (),
        consumer: str | None = None,
        type: str | None = None,  # noqa: A002
        before: int | None = None,
        limit: int = 50,
    ) -> list[Summary]:
        """Up to *limit* dead letters, latest first. before: the id of the last one of the page before this one."""
        query = select(*_columns(Summary)).order_by(dead_letters.c.id.desc()).limit(limit)
        query = _where(query, states, consumer, type)
        if before is not None:
            query = query.where(dead_letters.c.id < before)
        with reading(self._engine) as connection:
            return [Summary(**row._mapping) for row in connection.execute(query)]

    def counts(self, *, consumer: str | None = None, type: str | None = None) -> dict[str, int]:  # noqa: A002
        """How many dead letters are in each state; every state is there."""
        query = _where(select(dead_letters.c.state, func.count()).group_by(dead_letters.c.state), (), consumer, type)
        with reading(self._engine) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state.value: found.get(state.value, 0) for state in DeadLetterState}

    def get(self, dead_letter_id: int) -> Detail:
        """All of one dead letter. Raises `NoSuchDeadLetter`."""
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

    def payload(self, dead_letter_id: int) -> bytes:
        """The whole payload as it came. Raises `NoSuchDeadLetter`."""
        with reading(self._engine) as connection:
            query = select(dead_letters.c.payload).where(dead_letters.c.id == dead_letter_id)
            found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
        return bytes(found)

    def find(self, reference: str) -> Summary:
        """The dead letter that *reference* names: a number is an id, all else a message id.

        Raises `NoSuchDeadLetter`, `AmbiguousMessageId`.
        """
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

    def discard(self, dead_letter_id: int, reason: str, actor: str) -> None:
        """Take a dead letter out of review for good, for *reason*. It is kept, with who did it and why.

        Raises `Refused` unless it is in review and *reason* says something, `NoSuchDeadLetter`.
        """
        reason = clean(reason.strip())
        if not reason:
            raise Refused("A dead letter is discarded for a reason: say which.")
        before, after = DeadLetterState.IN_REVIEW, DeadLetterState.DISCARDED
        with writing(self._engine) as connection, transitions(connection) as moves:
            if not moves.move(
                [dead_letter_id], before, after, discarded_at=now(), discarded_by=actor, discard_reason=reason
            ):
                raise Refused(
                    f"Dead letter {dead_letter_id} cannot be discarded: it is {_state(connection, dead_letter_id)}."
                )
            moves.record(actor, "discard", reason, [dead_letter_id], before, after)

    def request_redrive(self, ids: Iterable[int], actor: str, consumers: Consumers | None = None) -> Requested:
        """Ask the reviewer to send the dead letters *ids* back to their consumers, each at most once.

        consumers: the consumers that take each type, for a dead letter that no consumer took.
        """
        with writing(self._engine) as connection:
            return redrive.request(connection, ids, clean(actor), consumers or {})

    def items(self, item_ids: Sequence[str]) -> list[Item]:
        """What has become of these redrive items."""
        query = select(*[redrive_items.c[field] for field in Item.__dataclass_fields__])
        with reading(self._engine) as connection:
            return [Item(**row._mapping) for row in connection.execute(query.where(redrive_items.c.id.in_(item_ids)))]


def _where(query: Select[Any], states: Sequence[str], consumer: str | None, type_: str | None) -> Select[Any]:
    if states:
        query = query.where(dead_letters.c.state.in_(states))
    if consumer is not None:
        query = query.where(dead_letters.c.consumer == clean(consumer))
    if type_ is not None:
        query = query.where(dead_letters.c.type == clean(type_))
    return query


def _state(connection: Connection, dead_letter_id: int) -> str:
    state = connection.execute(
        select(dead_letters.c.state).where(dead_letters.c.id == dead_letter_id)
    ).scalar_one_or_none()
    if state is None:
        raise NoSuchDeadLetter(f"There is no dead letter {dead_letter_id}.")
    return str(state)
