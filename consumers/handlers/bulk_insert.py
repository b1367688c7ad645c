"""Burst writes: the queue takes the peak, and the database gets rows in batches, at the pace that it has.

A message is a row, each once: the rows of a batch, and the inbox's notes of their messages, are one transaction. A
batch in which one row cannot be is written again row by row, so that only this one goes to review.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from ackline.consumers import Batch, Context, consumer, exponential

if TYPE_CHECKING:  # only those who write load it
    from sqlalchemy import Table

M = TypeVar("M", bound=BaseModel)

#: Half of the default prefetch, so that a batch fills while another one is written.
BATCH = Batch(size=250, linger="200ms")


def inserts(
    name: str, contract: type[M], table: Table, *, batch: Batch = BATCH, database_url: str | None = None
) -> None:
    """Have each message of *contract* made a row of *table*, by a consumer of that *name*.

    The fields of the contract are columns of the table, which is there. batch: rows in a transaction at most, and how
    long the first of them waits for more. database_url: `ACKLINE_INBOX_DATABASE_URL` when not given, and Ackline's own
    without that.

    A row that the database refuses (a constraint, a value out of range) goes to review at once; a database that is away
    is waited for, and no attempt is counted.
    """
    from sqlalchemy import insert
    from sqlalchemy.exc import DataError, IntegrityError

    from ackline.consumers.inbox import inbox

    statement = insert(table)

    def write(messages: Any, contexts: list[Context]) -> None:
        contexts[0].session.execute(statement, [one.model_dump() for one in messages])

    write.__annotations__["messages"] = list[contract]  # type: ignore[valid-type]
    # OverflowError: SQLite's driver, of a number with more than 64 bits.
    retry = exponential(reject_on=(IntegrityError, DataError, OverflowError))
    consumer(name, retry=retry, batch=batch, inbox=inbox(database_url))(write)
