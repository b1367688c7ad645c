"""The store of dead letters: what the reviewer reads and changes, in transactions.

Every method is one transaction, is safe on any thread, and raises `DatabaseUnavailable` when the database is away: then
nothing of it happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ackline.dlq import acceptance, intake, redrive, tracking
from ackline.dlq.acceptance import Accepted
from ackline.dlq.deadletter import DeadLetter
from ackline.dlq.intake import Incoming
from ackline.dlq.outcome import Outcome
from ackline.dlq.transition import transitions
from ackline.dlq.view import Unstored
from ackline.infra.database import is_outage, reading, writing


class Store:
    """Dead letters in the database behind *engine*, whose tables are up to date."""

    def __init__(self, engine: Engine, *, alerting: bool = False) -> None:
        """alerting: whether somebody is to be told of failures that are new, or return; see `ackline.dlq.alerts`."""
        self._engine = engine
        self._alerting = alerting

    def ingest(self, dead: Sequence[DeadLetter]) -> list[Unstored]:
        """Store *dead* in one transaction; when it returns, all of them are on disk but those that it returns.

        One that the database does not take costs the batch its speed and nothing else: it is stored row by row then.
        """
        incoming = [intake.incoming(letter) for letter in dead]
        try:
            with writing(self._engine) as connection:
                intake.take(connection, incoming, alerting=self._alerting)
            return []
        except (SQLAlchemyError, ValueError):
            # ValueError: what a driver says of a text that it cannot encode.
            return self._ingest_one_by_one(incoming)

    def _ingest_one_by_one(self, dead: Sequence[Incoming]) -> list[Unstored]:
        unstored = []
        with writing(self._engine) as connection:
            for index, found in enumerate(dead):
                try:
                    with connection.begin_nested():
                        intake.take(connection, [found], alerting=self._alerting)
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

    def accepted(self, found: Sequence[Accepted]) -> None:
        """Record which tracked messages the broker took, in one transaction."""
        with writing(self._engine) as connection:
            acceptance.record(connection, found)

    def forget_deliveries(self, before: datetime, limit: int) -> int:
        """Delete up to *limit* rows of tracked deliveries that have not changed since *before*, and as many records of
        acceptance. Returns the greater number."""
        with reading(self._engine) as connection:  # mostly there are none, and then nobody has to wait for a writer
            if not tracking.has_old(connection, before):
                return 0
        with writing(self._engine) as connection:
            return tracking.forget(connection, before, limit)
