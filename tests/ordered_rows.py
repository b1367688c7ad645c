"""An application for tests: what an ordered consumer handles is a row of a database, written with an inbox."""

from __future__ import annotations

import os
import random

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert

from ackline.consumers import Context, consumer, fixed
from ackline.consumers.inbox import inbox
from ackline.producer import message

#: Names the database, for the inbox and for this.
DATABASE = "ACKLINE_INBOX_DATABASE_URL"
#: The share of tries that fail.
FAILING = 0.05
SHARDS = 6

service = MetaData()
#: No constraint: what is handled twice is two rows, and their ids tell the order.
steps = Table(
    "steps",
    service,
    Column("id", Integer, primary_key=True),
    Column("account", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", Integer, nullable=False),
)


@message("test.ordered.step", key="account")
class Step(BaseModel):
    """The *number*-th step of an account, from 1."""

    account: str
    number: int


@consumer("account-book", ordered_by="account", shards=SHARDS, inbox=inbox(), retry=fixed(attempts=50, delay="1s"))
def record(step: Step, ctx: Context) -> None:
    ctx.session.execute(
        insert(steps).values(account=step.account, number=step.number, attempt=ctx.attempt, worker=os.getpid())
    )
    if random.random() < FAILING:
        raise ConnectionError("the line is bad")
