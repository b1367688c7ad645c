"""An application for tests: what is paid is a row of a database, with an inbox, with a claim, and without either."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, Text, insert

from ackline.consumers import Context, consumer, fixed
from ackline.consumers.inbox import claim, inbox
from ackline.infra import database
from ackline.producer import message

#: Names the database, which `ACKLINE_INBOX_DATABASE_URL` names too.
DATABASE = "ACKLINE_INBOX_DATABASE_URL"
#: Names a file: who creates it dies, after the commit of a message and before anything that follows from it.
DIES = "ACKLINE_TEST_INBOXED_DIES"
#: SQLite that is locked for long, on a slow machine, is not the question here.
RETRY = fixed(attempts=1000, delay="1s")
INBOX, CLAIM, BARE = "paid-inbox", "paid-claim", "paid-bare"

service = MetaData()
#: No constraint: a payment that is written twice is two rows.
payments = Table(
    "payments",
    service,
    Column("id", Integer, primary_key=True),
    Column("consumer", Text, nullable=False),
    Column("number", Integer, nullable=False),
)


@message("test.inboxed.paid")
class Paid(BaseModel):
    number: int


@message("test.inboxed.receipt")
class ReceiptIssued(BaseModel):
    number: int
    consumer: str


@contextmanager
def deadly(ctx: Context) -> Iterator[None]:
    """Around everything: what is within is over when it dies."""
    yield
    fatal = os.environ.get(DIES)
    if fatal and not Path(fatal).exists():
        Path(fatal).touch()
        os.kill(os.getpid(), signal.SIGKILL)


@lru_cache(maxsize=1)
def engine() -> Engine:
    return database.connect(os.environ[DATABASE])


def write(connection: Connection, ctx: Context, paid: Paid) -> None:
    connection.execute(insert(payments).values(consumer=ctx.consumer, number=paid.number))
    ctx.publish(ReceiptIssued(number=paid.number, consumer=ctx.consumer))


@consumer(INBOX, retry=RETRY, inbox=inbox(), middleware=[deadly])
def with_inbox(paid: Paid, ctx: Context) -> None:
    write(ctx.session, ctx, paid)


@consumer(CLAIM, retry=RETRY, inbox=claim("10m"), middleware=[deadly])
def with_claim(paid: Paid, ctx: Context) -> None:
    with engine().begin() as connection:
        write(connection, ctx, paid)


@consumer(BARE, retry=RETRY)
def without(paid: Paid, ctx: Context) -> None:
    with engine().begin() as connection:
        write(connection, ctx, paid)
